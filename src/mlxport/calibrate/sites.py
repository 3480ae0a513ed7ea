"""The matrices of a model: they compute in float32, and what they are given is measured."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.calibrate.moments import Experts, Moments, Power
from mlxport.errors import UnsupportedError
from mlxport.model.lazy_parameters import placeholder
from mlxport.model.leaf_calls import LeafCalls, expert_products

__all__ = ["OFF", "ORIGINAL", "REHEARSAL", "ROUNDED", "Recorder", "Site"]

# What the forward pass under way is for.
OFF = "off"  # computing only
REHEARSAL = "rehearsal"  # which layers are called: nothing is computed
ORIGINAL = "original"  # the original's activations
ROUNDED = "rounded"  # activations of what is quantized so far: they are measured


class Recorder:
    """What all sites share: the purpose of the pass, and which inputs were seen in this piece of the batch.

    Args:
        kind: Makes the statistics of an ordinary matrix.
    """

    def __init__(self, kind: type[Moments] | type[Power]) -> None:
        self.mode = OFF
        self.kind = kind
        self.open: str | None = None  # the unit that is being called
        self.sites: list[Site] = []
        self.seen: dict[int, tuple[mx.array, Any]] = {}

    def begin(self, mode: str) -> None:
        """The next piece of the batch is about to be computed."""
        self.mode, self.seen = mode, {}
        if mode == ORIGINAL:
            for site in self.sites:
                site.waiting = []

    def arrays(self) -> list[mx.array]:
        """What the last piece left to be evaluated."""
        found: dict[int, list[mx.array]] = {}
        for site in self.sites:
            if site.statistics is not None:
                found.setdefault(id(site.statistics), site.statistics.arrays())
        waiting = [x for site in self.sites for x in site.waiting]
        return [*waiting, *(array for arrays in found.values() for array in arrays)]


class Site(LeafCalls):
    """One matrix: what computes its calls, and where its statistics are."""

    def __init__(self, path: str, unit: str, module: Any, recorder: Recorder) -> None:
        self.path, self.unit, self.module, self.recorder = path, unit, module, recorder
        self.statistics: Moments | Power | Experts | None = None
        self.waiting: list[mx.array] = []  # inputs of the original in this piece, in the order of the calls

    def drop(self) -> None:
        """Let go of the matrix."""
        self.module.weight = placeholder(self.module.weight)

    def ready(self) -> bool:
        """Whether this is the rehearsal, in which nothing is computed; refuses a call from outside the unit."""
        if self.recorder.open != self.unit:
            raise UnsupportedError(
                f"this architecture uses {self.path} outside of {self.unit}, where its weights are not in memory",
                hint="use --quantizer search instead of --calibrate",
            )
        return self.recorder.mode == REHEARSAL

    def linear(self, x: mx.array) -> mx.array:
        """See ``LeafCalls``."""
        if self.ready():
            return mx.zeros((*x.shape[:-1], self.module.weight.shape[0]))
        self.see(x)
        return x.astype(mx.float32) @ self.module.weight.astype(mx.float32).T  # type: ignore[no-any-return]

    def experts(self, x: mx.array, indices: mx.array, ordered: bool) -> mx.array:
        """See ``LeafCalls``; one expert at a time is float32, as all of them might not fit."""
        weight = self.module.weight
        if self.ready():
            batch = np.broadcast_shapes(tuple(x.shape[:-2]), tuple(indices.shape))
            return mx.zeros((*batch, x.shape[-2], weight.shape[1]))
        seen = []

        def product(expert: int, mine: mx.array, _: Any) -> mx.array:
            seen.append((expert, mine.reshape(-1, mine.shape[-1])))
            result: mx.array = mine @ weight[expert].astype(mx.float32).T
            return result

        output = expert_products(x.astype(mx.float32), indices, product)
        self.see_experts(x, seen)
        return output

    def see(self, x: mx.array) -> None:
        """Measure an input [..., columns]; matrices that are given the same array share what is measured."""
        mode = self.recorder.mode
        if mode == ORIGINAL:
            self.waiting.append(x)
        if mode != ROUNDED:
            return
        original = self.waiting.pop(0) if self.waiting else None
        known = self.recorder.seen.get(id(x))
        if known is not None and (self.statistics is None or self.statistics is known[1]):
            self.statistics = known[1]
            return
        if self.statistics is None:
            self.statistics = self.recorder.kind()
        assert not isinstance(self.statistics, Experts)
        self.recorder.seen[id(x)] = (x, self.statistics)
        pair = _flat(original) if original is not None and original.shape == x.shape else None
        self.statistics.add(_flat(x), pair)

    def see_experts(self, x: mx.array, parts: list[tuple[int, mx.array]]) -> None:
        """Measure what each expert is given of ``x``."""
        if self.recorder.mode != ROUNDED:
            return
        known = self.recorder.seen.get(id(x))
        if known is not None and (self.statistics is None or self.statistics is known[1]):
            self.statistics = known[1]
            return
        if self.statistics is None:
            self.statistics = Experts()
        assert isinstance(self.statistics, Experts)
        self.recorder.seen[id(x)] = (x, self.statistics)
        for expert, rows in parts:
            self.statistics.add_expert(expert, rows)


def _flat(x: mx.array) -> mx.array:
    return x.reshape(-1, x.shape[-1]).astype(mx.float32)
