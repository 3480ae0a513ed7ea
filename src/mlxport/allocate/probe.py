"""One forward pass in which each part of the batch sees another rounding of one module.

The batch holds equal parts, of the same tokens. In the first no weight is rounded; in every other one the weight of one
module is. So a single pass over the weights, read where they are used and never all in memory, tells what each of many
roundings does to the output, whatever the architecture: only the calls of leaf modules are replaced.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models import switch_layers

from mlxport.errors import NumericsError, UnsupportedError
from mlxport.model.hooks import answering, swapped
from mlxport.model.leaf_calls import LeafCalls, expert_products, is_leaf, leaf_class, row_products, table_rows
from mlxport.model.tensors import Tensor, computed_tensors, whole
from mlxport.quant.packing import dequantize_rows, quantize_rows
from mlxport.transform import Program
from mlxport.types import QuantSpec

__all__ = ["Calls", "Probe", "candidate_weights", "probed", "rounded", "watched"]

_BLOCK_BYTES = 16 << 20  # of stored rows; as float32, with a rounded copy and what rounding works on, about ten times
_KEPT_BYTES = 256 << 20  # models up to this size stay in memory once they are read

_lock = threading.RLock()


@dataclass
class Probe:
    """Which part of the batch sees which setting of which module.

    Until the first module that is rounded for it, a part is what part 0 is: it is computed there, and copied.

    Attributes:
        weights: The unquantized weight of each module, by its path.
        parts: Number of parts of the batch; part 0 sees no rounding.
        roundings: Module path to pairs of part and setting; parts ascend in the order in which modules are called.
        quantizer: How weights are rounded.
        head: The module that makes the logits, called last.
        stride: Logits are made of every so many-th token only: of a large vocabulary they would not fit in memory.
        shape: Of one part: sequences, tokens.
    """

    weights: Mapping[str, Tensor]
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
        x, weight = x[: self._begin(path) * each], self.weights[path]

        def product(span: tuple[int, int]) -> mx.array:
            rows = weight.rows(*span)
            mx.eval(rows)
            whole = x @ rows.astype(mx.float32).T
            return self._replaced(path, whole, self._cuts(each), partial(self._product, x, rows))

        return self._done(path, row_products(weight.blocks(_BLOCK_BYTES), product), each)

    def lookup(self, path: str, ids: mx.array) -> mx.array:
        """Rows of an embedding; only those that are asked for are read."""
        ids = self._spread(ids)
        each = self._each(path, ids.shape[0])
        rows, places = table_rows(ids[: self._begin(path) * each], lambda row: self.weights[path].rows(row, row + 1))
        found = rows.astype(mx.float32)[places]
        result = self._replaced(path, found, self._cuts(each), lambda spec, own: self._rounded(rows, spec)[places[own]])
        return self._done(path, result, each)

    def experts(self, path: str, x: mx.array, indices: mx.array) -> mx.array:
        """What ``gather_mm`` computes, one expert's matrix at a time."""
        first = self._each(path, np.broadcast_shapes(tuple(x.shape[:-2]), tuple(indices.shape))[0])
        count = self._begin(path) * first
        x, indices = x[:count], indices[:count]
        batch = np.broadcast_shapes(tuple(x.shape[:-2]), tuple(indices.shape))
        cuts = self._cuts(first * prod(batch[1:]))

        def product(expert: int, mine: mx.array, entries: Any) -> mx.array:
            matrix = self.weights[path].rows(expert, expert + 1)[0]
            whole = mine @ matrix.astype(mx.float32).T
            own = np.searchsorted(entries, cuts)
            return self._replaced(path, whole, own, partial(self._product, mine, matrix))

        return self._done(path, expert_products(x, indices, product), first)

    def other(self, path: str, call: Callable[..., mx.array], module: Any, args: tuple[Any, ...]) -> mx.array:
        """Any other module, with its whole weight: as it is, then rounded on the parts that see it so."""
        placeholder, weight = module["weight"], whole(self.weights[path])
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


@dataclass(frozen=True)
class _ProbedLeaf(LeafCalls):
    """The calls of one layer."""

    probe: Probe
    path: str

    def linear(self, x: mx.array) -> mx.array:
        return self.probe.linear(self.path, x)

    def lookup(self, ids: mx.array) -> mx.array:
        return self.probe.lookup(self.path, ids)

    def experts(self, x: mx.array, indices: mx.array, ordered: bool) -> mx.array:
        return self.probe.experts(self.path, x, indices)


def _probed_class(path: str, module: Any, probe: Probe) -> type:
    if is_leaf(module):
        return leaf_class(module, _ProbedLeaf(probe, path))

    def answer(module: Any, _: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return probe.other(path, partial(call, **kwargs), module, args)

    return answering(type(module), answer)


def candidate_weights(program: Program, paths: Iterable[str]) -> dict[str, Tensor]:
    """The weights of modules by path, as a program that quantizes nothing computes them."""
    tensors = computed_tensors(program, _KEPT_BYTES)
    return {path: tensors[f"{path}.weight"] for path in paths}


def rounded(rows: mx.array, spec: QuantSpec, quantizer: str = "rtn") -> mx.array:
    """Rows as they are read back once they are stored with ``spec``, float32.

    Args:
        rows: In the dtype that is quantized, last dimension a multiple of the group size.
        spec: The setting.
        quantizer: ``rtn`` or ``search``.
    """
    return dequantize_rows(quantize_rows(rows, spec, quantizer), spec)


@contextlib.contextmanager
def probed(modules: Mapping[str, Any], probe: Probe) -> Iterator[None]:
    """Let the calls of ``modules`` (by path) go through ``probe``; tokens are not sorted by expert meanwhile."""
    changes = [(module, _probed_class(path, module, probe)) for path, module in modules.items()]
    with _in_order(), swapped(changes):
        yield


@dataclass
class Calls:
    """What was seen of some modules, by path.

    Attributes:
        order: Those that were called, in the order of their first calls.
        last: The one that was called last.
        looked: Those whose weight other code has read.
        sizes: Of the first argument of the last call.
    """

    order: list[str] = field(default_factory=list)
    last: str = ""
    looked: set[str] = field(default_factory=set)
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)


@contextlib.contextmanager
def watched(modules: Mapping[str, Any]) -> Iterator[Calls]:
    """See which of ``modules`` are called meanwhile; their calls are their own."""
    seen = Calls()
    inside: list[str] = []

    def noting(path: str, kind: type) -> type:
        def answer(_: Any, __: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if path not in seen.order:
                seen.order.append(path)
            seen.last = path
            seen.sizes[path] = tuple(args[0].shape) if args and isinstance(args[0], mx.array) else ()
            inside.append(path)
            try:
                return call(*args, **kwargs)
            finally:
                inside.pop()

        def look(self: Any, name: str) -> Any:
            if name == "weight" and path not in inside:
                seen.looked.add(path)
            return kind.__getattr__(self, name)  # type: ignore[attr-defined]

        return answering(kind, answer, __getattr__=look)

    with swapped([(module, noting(path, type(module))) for path, module in modules.items()]):
        yield seen


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
