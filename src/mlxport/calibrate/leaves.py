"""mlx-lm's leaf layers, computing in float32 and showing what they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.switch_layers import SwitchLinear

from mlxport.calibrate.moments import Experts, Moments, Power, by_expert
from mlxport.errors import UnsupportedError

__all__ = ["LEAVES", "OFF", "ORIGINAL", "REHEARSAL", "ROUNDED", "Recorder", "Site"]

# What the forward pass under way is for.
OFF = "off"  # computing only
REHEARSAL = "rehearsal"  # which layers are called: nothing is computed
ORIGINAL = "original"  # the original's activations
ROUNDED = "rounded"  # activations of what is quantized so far: they are measured


class Recorder:
    """What all leaves share: the purpose of the pass, and which inputs were seen in this piece of the batch.

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


class Site:
    """One matrix: where its statistics are."""

    def __init__(self, path: str, unit: str, module: Any, recorder: Recorder) -> None:
        self.path, self.unit, self.module, self.recorder = path, unit, module, recorder
        self.statistics: Moments | Power | Experts | None = None
        self.waiting: list[mx.array] = []  # inputs of the original in this piece, in the order of the calls

    def ready(self) -> bool:
        """Whether this is the rehearsal, in which leaves compute nothing; refuses a call from outside the unit."""
        if self.recorder.open != self.unit:
            raise UnsupportedError(
                f"this architecture uses {self.path} outside of {self.unit}, where its weights are not in memory",
                hint="use --quantizer search instead of --calibrate",
            )
        return self.recorder.mode == REHEARSAL

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


class CalibratedLinear(nn.Linear):  # type: ignore[misc]
    """``nn.Linear`` in float32."""

    def __call__(self, x: mx.array) -> mx.array:
        """As the base."""
        site: Site = self._site
        if site.ready():
            return mx.zeros((*x.shape[:-1], self.weight.shape[0]))
        site.see(x)
        y: mx.array = x.astype(mx.float32) @ self.weight.astype(mx.float32).T
        return y + self.bias if "bias" in self else y


class CalibratedSwitchLinear(SwitchLinear):  # type: ignore[misc]
    """``SwitchLinear`` in float32, expert by expert: all of them as float32 at once might not fit."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """As the base: each batch entry of ``x`` by the matrix that its index names."""
        site: Site = self._site
        batch = np.broadcast_shapes(tuple(x.shape[:-2]), tuple(indices.shape))
        if site.ready():
            return mx.zeros((*batch, x.shape[-2], self.weight.shape[1]))
        flat = mx.broadcast_to(x, (*batch, *x.shape[-2:])).reshape(-1, *x.shape[-2:]).astype(mx.float32)
        parts, places, seen = [], [], []
        for expert, entries in by_expert(indices, batch):
            rows = flat[mx.array(entries)]
            seen.append((expert, rows.reshape(-1, rows.shape[-1])))
            parts.append(rows @ self.weight[expert].astype(mx.float32).T)
            mx.eval(parts[-1])
            places.append(entries)
        site.see_experts(x, seen)
        order = np.argsort(np.concatenate(places))
        y = mx.concatenate(parts)[mx.array(order)].reshape(*batch, *parts[0].shape[1:])
        return y + mx.expand_dims(self.bias[indices], -2) if "bias" in self else y


LEAVES: Mapping[type, type] = {nn.Linear: CalibratedLinear, SwitchLinear: CalibratedSwitchLinear}
