"""One forward pass in which each part of the batch sees another rounding of one module.

The batch holds equal parts, of the same tokens. In the first no weight is rounded; in every other one the weight of one
module is. So a single pass over the weights, read where they are used and never all in memory, tells what each of many
roundings does to the output, whatever the architecture: only the calls of leaf modules are replaced.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import switch_layers
from mlx_lm.models.switch_layers import SwitchLinear

from mlxport.allocate.unquantized import Weights, rounded
from mlxport.errors import NumericsError, UnsupportedError
from mlxport.types import QuantSpec

__all__ = ["Calls", "Probe", "probed", "watched"]

_lock = threading.RLock()


@dataclass
class Probe:
    """Which part of the batch sees which setting of which module.

    Until the first module that is rounded for it, a part is what part 0 is: it is computed there, and copied.

    Attributes:
        weights: The unquantized weights.
        parts: Number of parts of the batch; part 0 sees no rounding.
        roundings: Module path to pairs of part and setting; parts ascend in the order in which modules are called.
        quantizer: How weights are rounded.
        head: The module that makes the logits, called last.
        stride: Logits are made of every so many-th token only: of a large vocabulary they would not fit in memory.
        shape: Of one part: sequences, tokens.
    """

    weights: Weights
    parts: int
    roundings: Mapping[str, Sequence[tuple[int, QuantSpec]]] = field(default_factory=dict)
    quantizer: str = "rtn"
    head: str = ""
    stride: int = 1
    shape: tuple[int, int] = (0, 0)
    _apart: int = 1  # parts that differ from part 0 by now, and part 0

    def linear(self, path: str, x: mx.array) -> mx.array:
        """``x`` [..., columns] by the transpose of the weight, in blocks of its rows."""
        each = self._each(path, x.shape[0])
        if path == self.head and self.stride > 1:
            x = x[:, self.stride - 1 :: self.stride]
        x, pieces = x[: self._begin(path) * each], []
        for start, stop in self.weights.blocks(path):
            rows = self.weights.rows(path, start, stop)
            product = x @ rows.astype(mx.float32).T
            pieces.append(self._replaced(path, product, self._cuts(each), partial(self._product, x, rows)))
            mx.eval(pieces[-1])
        return self._done(path, mx.concatenate(pieces, axis=-1), each)

    def gather(self, path: str, ids: mx.array) -> mx.array:
        """Rows of an embedding; only those that are asked for are read."""
        ids = self._spread(ids)
        each = self._each(path, ids.shape[0])
        ids = ids[: self._begin(path) * each]
        used, place = np.unique(np.array(ids), return_inverse=True)
        rows = mx.concatenate([self.weights.rows(path, int(row), int(row) + 1) for row in used])
        places = mx.array(place.reshape(ids.shape))
        found = rows.astype(mx.float32)[places]
        result = self._replaced(path, found, self._cuts(each), lambda spec, own: self._rounded(rows, spec)[places[own]])
        return self._done(path, result, each)

    def experts(self, path: str, x: mx.array, indices: mx.array) -> mx.array:
        """What ``gather_mm`` computes, one expert's matrix at a time."""
        batch = np.broadcast_shapes(tuple(x.shape[:-2]), tuple(indices.shape))
        first = self._each(path, batch[0])
        batch = (self._begin(path) * first, *batch[1:])
        flat = mx.broadcast_to(x[: batch[0]], (*batch, *x.shape[-2:])).reshape(-1, *x.shape[-2:])
        chosen = np.broadcast_to(np.array(indices[: batch[0]]), batch).reshape(-1)
        each = first * prod(batch[1:])
        pieces, order = [], []
        for expert in np.unique(chosen):
            matrix = self.weights.rows(path, int(expert), int(expert) + 1)[0]
            places = np.flatnonzero(chosen == expert)
            mine = flat[mx.array(places)]
            product = mine @ matrix.astype(mx.float32).T
            cuts = np.searchsorted(places, self._cuts(each))
            pieces.append(self._replaced(path, product, cuts, partial(self._product, mine, matrix)))
            order.append(places)
            mx.eval(pieces[-1])
        result = mx.concatenate(pieces)[mx.array(np.argsort(np.concatenate(order)))]
        return self._done(path, result.reshape(*batch, *result.shape[-2:]), first)

    def other(self, path: str, call: Callable[..., mx.array], module: Any, args: tuple[Any, ...]) -> mx.array:
        """Any other module, with its whole weight: as it is, then rounded on the parts that see it so."""
        placeholder, weight = module["weight"], self.weights.whole(path)
        parts = self._begin(path)

        def cut(first: int, last: int) -> list[Any]:
            """The arguments of the parts [first, last)."""
            sizes = [self._each(path, a.shape[0]) if isinstance(a, mx.array) else 0 for a in args]
            return [a[first * n : last * n] if n else a for a, n in zip(args, sizes, strict=True)]

        def part(spec: QuantSpec, own: slice) -> mx.array:
            module["weight"] = self._rounded(weight, spec)
            return call(*cut(own.start // each, own.stop // each))

        try:
            module["weight"] = weight.astype(mx.float32)
            result = call(*cut(0, parts))
            each = result.shape[0] // parts
            return self._done(path, self._replaced(path, result, self._cuts(each), part), each)
        finally:
            module["weight"] = placeholder

    def _spread(self, ids: mx.array) -> mx.array:
        """Positions that all sequences share, once for each of them: their embeddings differ by part, too."""
        sequences, length = self.shape
        if tuple(ids.shape) in ((length,), (1, length)) and sequences * self.parts > 1:
            return mx.broadcast_to(ids, (sequences * self.parts, length))
        return ids

    def _product(self, x: mx.array, rows: mx.array, spec: QuantSpec, own: slice) -> mx.array:
        """The entries ``own`` of ``x`` by the transpose of rounded rows."""
        return x[own] @ self._rounded(rows, spec).T

    def _rounded(self, rows: mx.array, spec: QuantSpec) -> mx.array:
        return rounded(rows, spec, self.quantizer)

    def _begin(self, path: str) -> int:
        """Parts to compute at a call: those that differ from part 0, and those that this module makes differ."""
        self._apart = max([self._apart, *(part + 1 for part, _ in self.roundings.get(path, ()))])
        return self._apart

    def _each(self, path: str, length: int) -> int:
        """Entries of the first axis that a part has."""
        if length % self.parts:
            raise UnsupportedError(
                f"{path}: its input has {length} rows, which is no multiple of the batch's {self.parts} parts",
                hint="this architecture mixes the batch; use -q or a recipe",
            )
        return length // self.parts

    def _cuts(self, each: int) -> Any:
        """Where each part starts, and the last ends."""
        return np.arange(self._apart + 1) * each

    def _replaced(
        self, path: str, result: mx.array, cuts: Any, compute: Callable[[QuantSpec, slice], mx.array]
    ) -> mx.array:
        """``result`` with the entries between the cuts of each part that sees a rounding computed again."""
        pieces, last = [], 0
        for part, spec in self.roundings.get(path, ()):
            start, stop = int(cuts[part]), int(cuts[part + 1])
            if start < stop:
                pieces += [result[last:start], compute(spec, slice(start, stop))]
                last = stop
        return mx.concatenate([*pieces, result[last:]]) if pieces else result

    def _done(self, path: str, result: mx.array, each: int) -> mx.array:
        """All parts, evaluated, so that no more than one module's weight is alive."""
        if self._apart < self.parts:
            result = mx.concatenate([result] + [result[:each]] * (self.parts - self._apart))
        finite = mx.isfinite(result).all()
        mx.eval(result, finite)
        mx.clear_cache()
        if not finite.item():
            raise NumericsError(
                f"{path}: the original's activations are not finite there, so damage cannot be measured",
                hint="convert without --fit and look at the weights with `mlxport inspect`",
            )
        return result


def _biased(module: Any, result: mx.array) -> mx.array:
    return result + module["bias"] if "bias" in module else result


def _linear(module: Any, x: mx.array) -> mx.array:
    return _biased(module, module.probe.linear(module.probe_path, x))


def _embedding(module: Any, ids: mx.array) -> mx.array:
    found: mx.array = module.probe.gather(module.probe_path, ids)
    return found


def _as_linear(module: Any, x: mx.array) -> mx.array:
    found: mx.array = module.probe.linear(module.probe_path, x)
    return found


def _experts(module: Any, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
    result: mx.array = module.probe.experts(module.probe_path, x, indices)
    return result + mx.expand_dims(module["bias"][indices], -2) if "bias" in module else result


_CALLS: Mapping[type, Mapping[str, Callable[..., mx.array]]] = {
    nn.Linear: {"__call__": _linear},
    nn.Embedding: {"__call__": _embedding, "as_linear": _as_linear},
    SwitchLinear: {"__call__": _experts},
}


def _others(kind: type) -> dict[str, Callable[..., mx.array]]:
    def replaced(name: str) -> Callable[..., mx.array]:
        original = getattr(kind, name)

        def method(module: Any, *args: Any, **kwargs: Any) -> mx.array:
            def call(*cut: Any) -> mx.array:
                result: mx.array = original(module, *cut, **kwargs)
                return result

            found: mx.array = module.probe.other(module.probe_path, call, module, args)
            return found

        return method

    return {name: replaced(name) for name in ("__call__", "as_linear") if hasattr(kind, name)}


@contextlib.contextmanager
def probed(modules: Mapping[str, Any], probe: Probe) -> Iterator[None]:
    """Let the calls of ``modules`` (by path) go through ``probe``; tokens are not sorted by expert meanwhile."""
    with _in_order():
        kinds = {path: type(module) for path, module in modules.items()}
        try:
            for path, module in modules.items():
                methods = _CALLS.get(kinds[path]) or _others(kinds[path])
                attributes = {"probe": probe, "probe_path": path, **methods}
                module.__class__ = type(kinds[path].__name__, (kinds[path],), attributes)
            yield
        finally:
            for path, module in modules.items():
                module.__class__ = kinds[path]


@dataclass
class Calls:
    """What was seen of some modules, by path.

    Attributes:
        order: Those that were called, in the order of their first calls.
        last: The one that was called last.
        looked: Those whose weight other code has read.
    """

    order: list[str] = field(default_factory=list)
    last: str = ""
    looked: set[str] = field(default_factory=set)


@contextlib.contextmanager
def watched(modules: Mapping[str, Any]) -> Iterator[Calls]:
    """See which of ``modules`` are called meanwhile; their calls are their own."""
    seen = Calls()
    inside: list[str] = []
    kinds = {path: type(module) for path, module in modules.items()}

    def methods(path: str, kind: type) -> dict[str, Any]:
        def noted(name: str) -> Callable[..., Any]:
            original = getattr(kind, name)

            def method(self: Any, *args: Any, **kwargs: Any) -> Any:
                if path not in seen.order:
                    seen.order.append(path)
                seen.last = path
                inside.append(path)
                try:
                    return original(self, *args, **kwargs)
                finally:
                    inside.pop()

            return method

        def look(self: Any, name: str) -> Any:
            if name == "weight" and path not in inside:
                seen.looked.add(path)
            return kind.__getattr__(self, name)  # type: ignore[attr-defined]

        return {"__getattr__": look, **{n: noted(n) for n in ("__call__", "as_linear") if hasattr(kind, n)}}

    try:
        for path, module in modules.items():
            module.__class__ = type(kinds[path].__name__, (kinds[path],), methods(path, kinds[path]))
        yield seen
    finally:
        for path, module in modules.items():
            module.__class__ = kinds[path]


@contextlib.contextmanager
def _in_order() -> Iterator[None]:
    """mlx-lm sorts many tokens by expert, which mixes the parts of a batch: leave them where they are."""

    def unsorted(x: mx.array, indices: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        *_, chosen = indices.shape
        flat = indices.flatten()
        order = mx.arange(flat.size)
        return x.flatten(0, -3)[order // chosen], flat, order

    with _lock:
        original = switch_layers._gather_sort
        switch_layers._gather_sort = unsorted
        try:
            yield
        finally:
            switch_layers._gather_sort = original
