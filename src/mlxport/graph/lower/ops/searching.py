"""Searching sorted arrays, distinct values, repetitions and segments."""

from __future__ import annotations

from typing import Any

import mlx.core as _mx

from mlxport.graph.lower.axes import axis
from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import searching as helper
from mlxport.graph.lower.ops.indexing import empty
from mlxport.graph.lower.ops.views import reshaped
from mlxport.graph.lower.registry import UNBACKED, call, call_host, op, refuse


def search(boundaries: Expr, values: Any, side: str) -> Expr:
    """``mx.searchsorted``, along the last axis of boundaries with more than one."""
    values = values if isinstance(values, Expr) else mx.array(values)
    options = {"side": "right"} if side == "right" else {}
    if boundaries.ndim == 1:
        return mx.searchsorted(boundaries, values, **options)
    return call(helper.searchsorted, boundaries, values, **options)


@op("aten.searchsorted.Tensor", "aten.searchsorted.Scalar")
def searchsorted(
    sorted_sequence: Expr,
    self: Any,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Expr | None = None,
) -> Expr:
    """Where to insert values so that the sequence stays sorted; ``out_int32`` shows in the dtype of the result."""
    if sorter is not None:
        sorted_sequence = mx.take_along_axis(sorted_sequence, sorter, axis=-1)
    return search(sorted_sequence, self, "right" if right or side == "right" else "left")


@op("aten.bucketize.Tensor", "aten.bucketize.Scalar")
def bucketize(self: Any, boundaries: Expr, out_int32: bool = False, right: bool = False) -> Expr:
    """The bucket of every value; ``out_int32`` shows in the dtype of the result."""
    return search(boundaries, self, "right" if right else "left")


def three(function: Any, values: Any, inverse: Any, *args: Any) -> Expr:
    """A call of a helper that gives distinct values, the inverse and the counts; for shadows, two shapes."""
    shadows = [_mx.zeros(values, dtype=args[0].dtype), _mx.zeros(inverse, dtype=_mx.int64)]
    return call_host(function, [*shadows, _mx.zeros(UNBACKED, dtype=_mx.int64)], *args)


@op("aten._unique2.default")
def unique(self: Expr, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False) -> Any:
    """Distinct values in order, for every element which one it is, and how often each is there."""
    return three(helper.unique, (UNBACKED,), self.value.shape, self)


@op("aten.unique_consecutive.default")
def unique_consecutive(
    self: Expr, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> Any:
    """Distinct neighbours, for every element which one it is, and how often each is there."""
    if dim is None:
        return three(helper.unique_consecutive, (UNBACKED,), self.value.shape, self)
    return unique_rows(helper.unique_consecutive_rows, self, dim)


@op("aten.unique_dim.default")
def unique_dim(
    self: Expr, dim: int, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> Any:
    """Distinct subarrays along an axis in order, which one each is, and how often each is there."""
    return unique_rows(helper.unique_rows, self, dim)


def unique_rows(function: Any, self: Expr, dim: int) -> Any:
    """A call of a helper that compares subarrays along an axis."""
    refuse(self.ndim == 0, "unique along an axis of a scalar")
    dim = axis(dim, self.ndim)
    shape = list(self.value.shape)
    length, shape[dim] = shape[dim], UNBACKED
    return three(function, shape, length, self, dim)


@op("aten.repeat_interleave.self_int")
def repeat_interleave(self: Expr, repeats: Any, dim: int | None = None, output_size: Any = None) -> Expr:
    """``mx.repeat``."""
    if dim is None:
        return mx.repeat(reshaped(self, [-1]), repeats)
    return mx.repeat(self, repeats, axis=dim)


@op("aten.repeat_interleave.Tensor")
def repeat_interleave_indices(repeats: Expr, output_size: Any = None) -> Expr:
    """Index ``i`` as often as ``repeats[i]`` says."""
    if empty(repeats):
        return mx.zeros(0, dtype=repeats.dtype)
    if output_size is None:
        return call_host(helper.repeat_indices, _mx.zeros(UNBACKED, dtype=repeats.dtype), repeats)
    return call(helper.repeat_indices, repeats, output_size)


@op("aten.segment_reduce.default")
def segment_reduce(
    data: Expr,
    reduce: str,
    lengths: Expr | None = None,
    indices: Expr | None = None,
    offsets: Expr | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: Any = None,
) -> Expr:
    """Sums, means, products, maxima or minima of segments of an axis; ``unsafe`` leaves out checks only."""
    refuse(indices is not None, "segment_reduce by indices")
    options: dict[str, Any] = {} if initial is None else {"initial": initial}
    if lengths is not None:
        options["lengths"] = lengths
    else:
        options["offsets"] = offsets
    if axis:
        options["axis"] = axis
    return call(helper.segment_reduce, data, reduce, **options)
