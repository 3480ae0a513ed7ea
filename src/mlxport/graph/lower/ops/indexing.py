"""Reading by index arrays: index, gather, take, masks, and what depends on values (nonzero)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as _mx

from mlxport.graph.lower.axes import at, axis, is_whole, known
from mlxport.graph.lower.expr import Expr, mx, prod, same_size
from mlxport.graph.lower.helpers import indexing as helper
from mlxport.graph.lower.registry import UNBACKED, call, call_host, op


def positions(mask: Expr) -> Expr:
    """Where the flattened mask is true."""
    if empty(mask):
        return mx.zeros(0, dtype=mx.int32)
    return call_host(helper.flat_nonzero, _mx.zeros(UNBACKED, dtype=_mx.int32), mask)


def is_mask(index: Any) -> bool:
    """Whether an index is a mask (torch takes uint8 for one)."""
    return index is not None and index.dtype in (mx.bool_, mx.uint8)


def merged(array: Expr, indices: Sequence[Expr | None]) -> tuple[Expr, list[Any]]:
    """The array with the axes of every mask merged into one, and the indices with positions for masks."""
    sizes: list[Any] = []
    result: list[Any] = []
    position = 0
    for index in indices:
        if not is_mask(index):
            result.append(index)
            sizes.append(array.shape[position])
            position += 1
            continue
        assert index is not None
        covered = array.shape[position : position + index.ndim]
        result.append(positions(index))
        sizes.append(prod(covered))
        position += index.ndim
    sizes.extend(array.shape[position:])
    same = len(sizes) == array.ndim
    return (array if same else array.reshape(*sizes)), result


def subscript(indices: Sequence[Any]) -> Any:
    """Torch's list of indices as MLX's subscript."""
    items = [slice(None) if index is None else index for index in indices]
    while len(items) > 1 and isinstance(items[-1], slice) and is_whole(items[-1]):
        items.pop()
    return tuple(items) if len(items) > 1 else items[0]


@op("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index_tensor(self: Expr, indices: Sequence[Expr | None]) -> Expr:
    """``x[:, i, j]``."""
    if all(index is None for index in indices):
        return self
    array, items = merged(self, indices)
    return array[subscript(items)]


@op("aten.index_select.default")
def index_select(self: Expr, dim: int, index: Expr) -> Expr:
    """``x[:, index]``."""
    if index.ndim == 0:
        index = index[None]
    if self.ndim == 0:
        return mx.broadcast_to(self, index.shape).reshape(())
    return self[at(dim, self.ndim, index)]


def empty(array: Expr) -> bool:
    """Whether the array is sure to have no elements."""
    return any(isinstance(size, int) and size == 0 for size in array.shape)


def lined_up(array: Expr, index: Expr, dim: int) -> Expr:
    """``array`` cut to the sizes of ``index`` in all axes but ``dim``: MLX wants them alike (or broadcasts)."""
    cuts: list[Any] = []
    for position in range(array.ndim):
        ours, theirs = array.shape[position], index.shape[position]
        cuts.append(slice(None) if position == dim or same_size(ours, theirs) else slice(theirs))
    return array[subscript(cuts)] if any(cut.stop is not None for cut in cuts) else array


@op("aten.gather.default")
def gather(self: Expr, dim: int, index: Expr, sparse_grad: bool = False) -> Expr:
    """``mx.take_along_axis``."""
    if empty(index):
        return mx.zeros(index.shape, dtype=self.dtype)
    if self.ndim == 0 or index.ndim == 0:
        return (self if self.ndim else self.reshape(1))[index]
    dim = axis(dim, self.ndim)
    return mx.take_along_axis(lined_up(self, index, dim), index, axis=dim)


@op("aten.take_along_dim.default")
def take_along_dim(self: Expr, indices: Expr, dim: int | None = None) -> Expr:
    """``mx.take_along_axis``, of the flattened array without ``dim``."""
    if dim is None:
        return take(self, indices if indices.ndim == 1 else indices.reshape(-1))
    return mx.take_along_axis(self, indices, axis=axis(dim, self.ndim))


@op("aten.take.default")
def take(self: Expr, index: Expr) -> Expr:
    """Elements of the flattened array."""
    return (self if self.ndim == 1 else self.reshape(-1))[index]


@op("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(self: Expr, mask: Expr, value: Any) -> Expr:
    """``mx.where(mask, value, x)``."""
    if self.dtype == mx.bool_ and isinstance(value, int | float):
        value = bool(value)
    return mx.where(mask, value, self)


@op("aten.masked_select.default")
def masked_select(self: Expr, mask: Expr) -> Expr:
    """The elements where the mask is true."""
    if empty(self) or empty(mask):
        return mx.zeros(0, dtype=self.dtype)
    return call_host(helper.masked_select, _mx.zeros(UNBACKED, dtype=self.dtype), self, mask)


@op("aten.masked_scatter.default")
def masked_scatter(self: Expr, mask: Expr, source: Expr) -> Expr:
    """Elements of ``source`` in order where the mask is true."""
    return call(helper.masked_scatter, self, mask, source)


@op("aten.nonzero.default")
def nonzero(self: Expr) -> Expr:
    """Indices of what is not zero, a row each."""
    if empty(self):
        return mx.zeros((0, self.ndim), dtype=mx.int64)
    return call_host(helper.nonzero, _mx.zeros((UNBACKED, self.ndim), dtype=_mx.int64), self)


@op("aten.nonzero_static.default")
def nonzero_static(self: Expr, size: Any, fill_value: int = -1) -> Expr:
    """The first ``size`` rows of ``nonzero``, filled up."""
    options = {} if fill_value == -1 else {"fill_value": fill_value}
    return call(helper.nonzero_static, self, size, **options)


@op("aten.tril.default")
def tril(self: Expr, diagonal: Any = 0) -> Expr:
    """``mx.tril``."""
    return mx.tril(self, diagonal) if not known(diagonal) or diagonal else mx.tril(self)


@op("aten.triu.default")
def triu(self: Expr, diagonal: Any = 0) -> Expr:
    """``mx.triu``."""
    return mx.triu(self, diagonal) if not known(diagonal) or diagonal else mx.triu(self)
