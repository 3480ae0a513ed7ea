"""Parts of arrays: select, slice, split, unbind, and copies with a part replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxport.graph.lower.axes import at, axis, is_whole, known
from mlxport.graph.lower.expr import Expr, mx, surely
from mlxport.graph.lower.helpers import slicing as helper
from mlxport.graph.lower.registry import call, op, refuse

_END = 2**63 - 1  # how torch writes "to the end"


@op("aten.select.int", "aten.select_copy.int")
def select(self: Expr, dim: int, index: Any) -> Expr:
    """``x[:, index]``."""
    return self[at(dim, self.ndim, index)]


def span(size: Any, start: Any, end: Any, step: int) -> slice:
    """A Python slice with what says nothing left out."""
    if isinstance(start, int) and start == 0:
        start = None
    if isinstance(end, int) and (end == _END or surely(end >= size)):
        end = None
    return slice(start, end, None if step == 1 else step)


@op("aten.slice.Tensor", "aten.slice_copy.Tensor")
def slice_(self: Expr, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Expr:
    """``x[:, start:end:step]``."""
    part = span(self.shape[axis(dim, self.ndim)], start, end, step)
    return self if is_whole(part) else self[at(dim, self.ndim, part)]


@op("aten.narrow_copy.default")
def narrow(self: Expr, dim: int, start: Any, length: Any) -> Expr:
    """``x[:, start:start + length]``."""
    size = self.shape[axis(dim, self.ndim)]
    if known(start) and start < 0:
        start = size + start
    return slice_(self, dim, start, start + length)


@op("aten.select_scatter.default")
def select_scatter(self: Expr, src: Expr, dim: int, index: Any) -> Expr:
    """A copy with ``x[:, index]`` replaced by ``src``."""
    return call(helper.select_scatter, self, src, axis(dim, self.ndim), index)


@op("aten.slice_scatter.default")
def slice_scatter(self: Expr, src: Expr, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Expr:
    """A copy with ``x[:, start:end:step]`` replaced by ``src``."""
    dim = axis(dim, self.ndim)
    part = span(self.shape[dim], start, end, step)
    if is_whole(part):
        return src
    options = {"start": part.start, "end": part.stop, "step": part.step}
    return call(helper.slice_scatter, self, src, dim, **{k: v for k, v in options.items() if v is not None})


def parts_of(array: Expr, sizes: Sequence[Any], dim: int) -> Any:
    """``mx.split`` at the running sums of ``sizes``, a number of parts where they are alike."""
    if len(sizes) == 1:
        return (array,)
    if known(*sizes) and len(set(sizes)) == 1:
        cuts: Any = len(sizes)
    else:
        cuts, position = [], 0
        for size in sizes[:-1]:
            position = position + size
            cuts.append(position)
    return mx.split(array, cuts, axis=dim) if dim else mx.split(array, cuts)


@op("aten.split.Tensor", "aten.split_copy.Tensor", "aten.unsafe_split.Tensor")
def split(self: Expr, split_size: Any, dim: int = 0) -> Any:
    """Parts of ``split_size``, the last one smaller if need be."""
    size = self.shape[axis(dim, self.ndim)]
    if not known(size, split_size):
        return call(helper.split, self, split_size, axis(dim, self.ndim))
    count = max(1, -(-size // split_size)) if split_size else 1
    return parts_of(self, [split_size] * (count - 1) + [size - split_size * (count - 1)], dim)


@op(
    "aten.split_with_sizes.default",
    "aten.split_with_sizes_copy.default",
    "aten.unsafe_split_with_sizes.default",
)
def split_with_sizes(self: Expr, split_sizes: Sequence[Any], dim: int = 0) -> Any:
    """Parts of the given sizes."""
    return parts_of(self, split_sizes, dim)


@op("aten.split.sizes")
def split_sizes(self: Expr, split_size: Sequence[Any], dim: int = 0) -> Any:
    """Parts of the given sizes."""
    return parts_of(self, split_size, dim)


@op("aten.unbind.int", "aten.unbind_copy.int")
def unbind(self: Expr, dim: int = 0) -> Any:
    """``mx.unstack``: the subarrays along an axis."""
    count = self.shape[axis(dim, self.ndim)]
    refuse(not known(count), "unbind of a dynamic size")
    if count < 2:
        return tuple(select(self, dim, index) for index in range(count))
    return mx.unstack(self, axis=dim) if dim else mx.unstack(self)
