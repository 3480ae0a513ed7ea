"""Diagonals, windows and strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from mlxport.graph.lower.axes import axis, known
from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import diagonals as helper
from mlxport.graph.lower.ops.common import widened
from mlxport.graph.lower.registry import call, op, refuse


@op("aten.diagonal.default", "aten.diagonal_copy.default")
def diagonal(self: Expr, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Expr:
    """``mx.diagonal``: the diagonal of two axes, put last."""
    options = {"offset": offset, "axis1": axis(dim1, self.ndim), "axis2": axis(dim2, self.ndim)}
    usual = {"offset": 0, "axis1": 0, "axis2": 1}
    return mx.diagonal(self, **{name: value for name, value in options.items() if value != usual[name]})


@op("aten.diagonal_scatter.default")
def diagonal_scatter(self: Expr, src: Expr, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Expr:
    """A copy with the diagonal of two axes replaced."""
    options = {"offset": offset, "axis1": axis(dim1, self.ndim), "axis2": axis(dim2, self.ndim)}
    usual = {"offset": 0, "axis1": 0, "axis2": 1}
    return call(helper.diagonal_scatter, self, src, **{k: v for k, v in options.items() if v != usual[k]})


@op("aten.linalg_diagonal.default")
def linalg_diagonal(A: Expr, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Expr:  # noqa: N803
    """``mx.diagonal`` of the last two axes."""
    return diagonal(A, offset, dim1, dim2)


@op("aten.diag.default")
def diag(self: Expr, diagonal: int = 0) -> Expr:
    """``mx.diag``: a matrix from a vector, or the diagonal of a matrix."""
    return mx.diag(self, diagonal) if diagonal else mx.diag(self)


@op("aten.diag_embed.default")
def diag_embed(self: Expr, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Expr:
    """Matrices with the last axis on a diagonal."""
    if self.ndim == 1 and axis(dim1, 2) < axis(dim2, 2):
        return diag(self, offset)
    options = {"offset": offset, "axis1": dim1, "axis2": dim2}
    usual = {"offset": 0, "axis1": -2, "axis2": -1}
    return call(helper.diag_embed, self, **{k: v for k, v in options.items() if v != usual[k]})


@op("aten.trace.default")
def trace(self: Expr) -> Expr:
    """``mx.trace``; integers are added in int64."""
    return mx.trace(widened(self))


@op("aten.unfold.default", "aten.unfold_copy.default")
def unfold(self: Expr, dimension: int, size: int, step: int) -> Expr:
    """Windows of ``size`` every ``step`` along an axis, put in a new last axis."""
    if self.ndim == 0:
        return self.reshape(1)[:size]
    return call(helper.unfold, self, axis(dimension, self.ndim), size, step)


def in_order(array: Expr, node: Node | None) -> Expr:
    """``array`` with its elements in the order in which torch has them in memory."""
    order = range(array.ndim) if node is None else node.meta.get("memory_order", range(array.ndim))
    refuse(order is None, "as_strided of a part of what is in memory: take the part by slicing, or copy it, before")
    return array if list(order) == list(range(array.ndim)) else array.transpose(*order)


@op("aten.as_strided.default", "aten.as_strided_copy.default")
def as_strided(
    self: Expr, size: Sequence[Any], stride: Sequence[Any], storage_offset: Any = None, node: Node | None = None
) -> Expr:
    """``mx.as_strided``, in whose terms strides are over the elements in order."""
    array = in_order(self, node)
    offset = 0 if storage_offset is None else storage_offset
    options = {} if known(offset) and not offset else {"offset": offset}
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if not known(*size, last, array.size):
        return call(helper.strided, array, tuple(size), tuple(stride), **options)
    if 0 in size:
        return mx.zeros(tuple(size), dtype=self.dtype)
    refuse(last >= array.size, "as_strided reads beyond the elements of its argument")
    return mx.as_strided(array, tuple(size), tuple(stride), **options)


@op("aten.as_strided_scatter.default", "prims.as_strided_scatter.default")
def as_strided_scatter(
    self: Expr | None = None,
    src: Expr | None = None,
    size: Sequence[Any] = (),
    stride: Sequence[Any] = (),
    storage_offset: Any = None,
    input: Expr | None = None,
    node: Node | None = None,
) -> Expr:
    """A copy with the elements of ``as_strided`` replaced."""
    array = self if self is not None else input
    assert array is not None and src is not None
    refuse(in_order(array, node) is not array, "as_strided_scatter into axes in another order than in memory")
    options = (
        {} if known(storage_offset) and not storage_offset or storage_offset is None else {"offset": storage_offset}
    )
    return call(helper.as_strided_scatter, array, src, tuple(size), tuple(stride), **options)
