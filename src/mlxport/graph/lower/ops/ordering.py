"""Sorting, selection by rank, and running extremes."""

from __future__ import annotations

from typing import Any

from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import ordering
from mlxport.graph.lower.ops.common import reduced
from mlxport.graph.lower.registry import call, op, refuse


def _zero_index(x: Expr) -> Expr:
    return mx.zeros_like(x, mx.int64)


@op("aten.sort.default", "aten.sort.stable")
def sort(self: Expr, dim: int = -1, descending: bool = False, stable: bool | None = None) -> Any:
    """Sorted values and where they were; equal ones keep their order, NaN is the largest."""
    if self.ndim == 0:
        return self, _zero_index(self)
    return call(ordering.sort, self, **_axis(dim), **({"descending": True} if descending else {}))


@op("aten.argsort.default", "aten.argsort.stable")
def argsort(self: Expr, dim: int = -1, descending: bool = False, stable: bool | None = None) -> Expr:
    """Where the sorted values are; equal ones keep their order, NaN is the largest."""
    if self.ndim == 0:
        return _zero_index(self)
    if descending:
        return call(ordering.argsort_descending, self, **_axis(dim))
    return mx.argsort(self, **_axis(dim))


def _axis(dim: int) -> dict[str, int]:
    return {} if dim == -1 else {"axis": dim}


@op("aten.msort.default")
def msort(self: Expr) -> Expr:
    """Sorted along the first axis."""
    return self if self.ndim == 0 else mx.sort(self, axis=0)


@op("aten.topk.default")
def topk(self: Expr, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:  # noqa: A002
    """The ``k`` largest (smallest) values of an axis in order, and where they are."""
    if self.ndim == 0:
        refuse(not isinstance(k, int) or k != 1, "topk of a number")
        return self, _zero_index(self)
    return call(ordering.topk, self, k, **_axis(dim), **({} if largest else {"largest": False}))


@op("aten.kthvalue.default")
def kthvalue(self: Expr, k: Any, dim: int = -1, keepdim: bool = False) -> Any:
    """The ``k``-th smallest value of an axis and where it is."""
    if self.ndim == 0:
        return self, _zero_index(self)
    return call(ordering.kthvalue, self, k, **_axis(dim), **_keepdims(keepdim))


def _keepdims(keepdim: bool) -> dict[str, bool]:
    return {"keepdims": True} if keepdim else {}


@op("aten.median.default")
def median(self: Expr) -> Expr:
    """The lower of the middle values of all, NaN if there is one."""
    return self if self.ndim == 0 else call(ordering.median, self.reshape(-1))[0]


@op("aten.median.dim")
def median_dim(self: Expr, dim: int, keepdim: bool = False) -> Any:
    """The lower of the middle values of an axis, NaN if there is one, and where it is."""
    if self.ndim == 0:
        return self, _zero_index(self)
    return call(ordering.median, self, **_axis(dim), **_keepdims(keepdim))


@op("aten.nanmedian.default")
def nanmedian(self: Expr) -> Expr:
    """The lower of the middle values of all, without NaN."""
    return self if self.ndim == 0 else call(ordering.median, self.reshape(-1), skip_nan=True)[0]


@op("aten.nanmedian.dim")
def nanmedian_dim(self: Expr, dim: int, keepdim: bool = False) -> Any:
    """The lower of the middle values of an axis, without NaN, and where it is."""
    if self.ndim == 0:
        return self, _zero_index(self)
    return call(ordering.median, self, skip_nan=True, **_axis(dim), **_keepdims(keepdim))


@op("aten.mode.default")
def mode(self: Expr, dim: int = -1, keepdim: bool = False) -> Any:
    """The most frequent value of an axis, the smallest of several, and where it stands last."""
    if self.ndim == 0:
        return self, _zero_index(self)
    return call(ordering.mode, self, **_axis(dim), **_keepdims(keepdim))


@op("aten.cummax.default")
def cummax(self: Expr, dim: int) -> Any:
    """The largest values so far, NaN from the first NaN on, and where they stand last."""
    if self.ndim == 0:
        return self, _zero_index(self)
    return call(ordering.cummax, self, dim)


@op("aten.cummin.default")
def cummin(self: Expr, dim: int) -> Any:
    """The smallest values so far, NaN from the first NaN on, and where they stand last."""
    if self.ndim == 0:
        return self, _zero_index(self)
    return call(ordering.cummin, self, dim)


@op("prims.amax.default")
def prims_amax(inp: Expr, dims: Any, output_dtype: Any = None) -> Expr:
    """The largest value."""
    return inp.max(**reduced(inp, dims))


@op("prims.amin.default")
def prims_amin(inp: Expr, dims: Any, output_dtype: Any = None) -> Expr:
    """The smallest value."""
    return inp.min(**reduced(inp, dims))
