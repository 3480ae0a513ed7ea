"""Writing by index arrays: index_put, scatter, index_add and their relatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxport.graph.lower.axes import at, axis, known
from mlxport.graph.lower.expr import Expr, mx, same_size
from mlxport.graph.lower.helpers import indexing as helper
from mlxport.graph.lower.ops.indexing import lined_up, merged, subscript
from mlxport.graph.lower.ops.views import reshaped
from mlxport.graph.lower.registry import call, op

REDUCTIONS = {
    "add": "sum", "sum": "sum", "multiply": "prod", "prod": "prod", "mean": "mean", "amax": "amax", "amin": "amin",
}  # fmt: skip


def at_least_vectors(*arrays: Any) -> list[Any]:
    """Scalars as vectors of one element."""
    return [array.reshape(1) if isinstance(array, Expr) and array.ndim == 0 else array for array in arrays]


def whole_mask(array: Expr, indices: Sequence[Expr | None], values: Expr) -> Expr | None:
    """The mask shaped to broadcast with ``array``, if a mask is the only index and its values do not vary along it."""
    found = [(place, index) for place, index in enumerate(indices) if index is not None]
    (place, mask), *others = found
    behind = array.ndim - place - (mask.ndim if mask is not None else 0)
    if others or mask is None or mask.dtype != mx.bool_ or values.ndim > behind:
        return None
    return mask[(..., *[None] * behind)] if behind else mask


@op("aten.index_put.default", "aten._unsafe_index_put.default")
def index_put(self: Expr, indices: Sequence[Expr | None], values: Expr, accumulate: bool = False) -> Expr:
    """A copy with ``x[:, i, j] = values``, or ``+= values`` with repeated places counted."""
    if all(index is None for index in indices):
        return self + values if accumulate else mx.broadcast_to(values, self.shape)
    mask = whole_mask(self, indices, values)
    if mask is not None:
        return mx.where(mask, self + values if accumulate else values, self)
    array, items = merged(self, indices)
    if accumulate:
        result = array.at[subscript(items)].add(values)
    else:
        result = call(helper.index_put, array, items, values)
    return result if array is self else reshaped(result, self.shape)


@op("aten._index_put_impl.default")
def index_put_impl(
    self: Expr, indices: Sequence[Expr | None], values: Expr, accumulate: bool = False, unsafe: bool = False
) -> Expr:
    """``index_put``; ``unsafe`` leaves out the checks of the indices."""
    return index_put(self, indices, values, accumulate)


@op("aten.put.default")
def put(self: Expr, index: Expr, source: Expr, accumulate: bool = False) -> Expr:
    """A copy with elements of the flattened array replaced, or added to."""
    flat = self if self.ndim == 1 else self.reshape(-1)
    source = source if source.ndim == index.ndim else reshaped(source, index.shape)
    result = flat.at[index].add(source) if accumulate else call(helper.index_put, flat, [index], source)
    return result if self.ndim == 1 else reshaped(result, self.shape)


def scattered(function: Any, self: Expr, dim: int, index: Expr, src: Any, **options: Any) -> Expr:
    """A call of a scatter helper, with scalars made vectors and ``src`` cut to the sizes of ``index``."""
    if known(*index.shape) and 0 in index.shape:
        return self
    array, index, src = at_least_vectors(self, index, src)
    dim = axis(dim, array.ndim)
    if isinstance(src, Expr) and src.ndim:
        src = lined_up(src, index, -1)
    result = function(array, dim, index, src, **options)
    return result if array.ndim == self.ndim else result.reshape(())


def put_along_axis(array: Expr, dim: int, index: Expr, src: Any) -> Expr:
    """``mx.put_along_axis`` where ``index`` spans the other axes, else a helper."""
    others = [place for place in range(array.ndim) if place != dim]
    if all(same_size(array.shape[place], index.shape[place]) for place in others):
        return mx.put_along_axis(array, index, src, axis=dim)
    return call(helper.scatter, array, dim, index, src)


@op("aten.scatter.src")
def scatter_src(self: Expr, dim: int, index: Expr, src: Expr) -> Expr:
    """A copy with ``x[index[i, j], j] = src[i, j]`` (for axis 0)."""
    return scattered(put_along_axis, self, dim, index, src)


@op("aten.scatter.value")
def scatter_value(self: Expr, dim: int, index: Expr, value: Any) -> Expr:
    """A copy with ``x[index[i, j], j] = value`` (for axis 0)."""
    number = mx.array(value, dtype=self.dtype)
    if self.ndim and index.ndim and not (known(*index.shape) and 0 in index.shape):
        return put_along_axis(self, axis(dim, self.ndim), index, number)
    return scattered(put_along_axis, self, dim, index, number)


@op("aten.scatter_add.default")
def scatter_add(self: Expr, dim: int, index: Expr, src: Expr) -> Expr:
    """A copy with ``x[index[i, j], j] += src[i, j]`` (for axis 0)."""
    return scattered(lambda *args: call(helper.scatter_add, *args), self, dim, index, src)


def reduce_into(self: Expr, dim: int, index: Expr, src: Any, reduce: str, include_self: bool = True) -> Expr:
    """A call of ``scatter_add`` or ``scatter_reduce``."""
    reduce = REDUCTIONS[reduce]
    if reduce == "sum" and include_self:
        return scattered(lambda *args: call(helper.scatter_add, *args), self, dim, index, src)
    options = {} if include_self else {"include_self": False}
    return scattered(lambda *args: call(helper.scatter_reduce, *args, reduce, **options), self, dim, index, src)


@op("aten.scatter.reduce")
def scatter_reduce_old(self: Expr, dim: int, index: Expr, src: Expr, reduce: str) -> Expr:
    """``scatter`` that adds or multiplies."""
    return reduce_into(self, dim, index, src, reduce)


@op("aten.scatter.value_reduce")
def scatter_value_reduce(self: Expr, dim: int, index: Expr, value: Any, reduce: str) -> Expr:
    """``scatter`` of one value that adds or multiplies."""
    return reduce_into(self, dim, index, mx.full(index.shape, value, dtype=self.dtype), reduce)


@op("aten.scatter_reduce.two")
def scatter_reduce(self: Expr, dim: int, index: Expr, src: Expr, reduce: str, include_self: bool = True) -> Expr:
    """``x[index[i, j], j]`` combined with ``src[i, j]`` by sum, prod, mean, amax or amin (for axis 0)."""
    return reduce_into(self, dim, index, src, reduce, include_self)


def along(self: Expr, dim: int, index: Expr, source: Any) -> tuple[Expr, int, Expr, Any]:
    """Arguments of ``index_add`` and its like with scalars made vectors."""
    array, index = at_least_vectors(self, index)
    if isinstance(source, Expr) and source.ndim and source.ndim < array.ndim:
        source = source.reshape(1, *source.shape)
    elif isinstance(source, Expr) and source.ndim == 0 and array.ndim == 1:
        source = source.reshape(1)
    return array, axis(dim, array.ndim), index, source


def shaped_back(self: Expr, result: Expr) -> Expr:
    """Undo ``along``."""
    return result if self.ndim else result.reshape(())


@op("aten.index_add.default")
def index_add(self: Expr, dim: int, index: Expr, source: Expr, alpha: Any = 1) -> Expr:
    """``x.at[:, index].add(alpha * source)``."""
    array, dim, index, source = along(self, dim, index, source)
    return shaped_back(self, array.at[at(dim, array.ndim, index)].add(source if alpha == 1 else alpha * source))


@op("aten.index_copy.default")
def index_copy(self: Expr, dim: int, index: Expr, source: Expr) -> Expr:
    """A copy with ``x[:, index] = source``."""
    array, dim, index, source = along(self, dim, index, source)
    return shaped_back(self, call(helper.index_put, array, [*[None] * dim, index], source))


@op("aten.index_fill.int_Scalar", "aten.index_fill.int_Tensor")
def index_fill(self: Expr, dim: int, index: Expr, value: Any) -> Expr:
    """A copy with ``x[:, index] = value``."""
    array, dim, index, value = along(self, dim, index, value)
    return shaped_back(self, call(helper.index_put, array, [*[None] * dim, index], value))


@op("aten.index_reduce.default")
def index_reduce(self: Expr, dim: int, index: Expr, source: Expr, reduce: str, include_self: bool = True) -> Expr:
    """``x[:, index]`` combined with ``source`` by prod, mean, amax or amin."""
    array, dim, index, source = along(self, dim, index, source)
    options = {} if include_self else {"include_self": False}
    return shaped_back(self, call(helper.index_reduce, array, dim, index, source, REDUCTIONS[reduce], **options))
