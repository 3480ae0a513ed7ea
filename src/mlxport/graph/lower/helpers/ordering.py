"""Order statistics with torch's conventions for ties and NaN; no gradient goes through where numbers are."""

from __future__ import annotations

import mlx.core as mx


def argsort_descending(x: mx.array, axis: int = -1) -> mx.array:
    """Indices that sort downwards; equal values keep their order, NaN comes first."""
    x = mx.moveaxis(x, axis, -1)
    indices = x.shape[-1] - 1 - mx.argsort(x[..., ::-1], axis=-1)[..., ::-1].astype(mx.int32)
    return mx.moveaxis(indices, -1, axis)


def sort(x: mx.array, axis: int = -1, descending: bool = False) -> tuple[mx.array, mx.array]:
    """Sorted values and where they were; equal values keep their order, NaN is the largest."""
    indices = mx.stop_gradient(argsort_descending(x, axis) if descending else mx.argsort(x, axis=axis))
    return mx.take_along_axis(x, indices, axis=axis), indices.astype(mx.int64)


def topk(x: mx.array, k: int, axis: int = -1, largest: bool = True) -> tuple[mx.array, mx.array]:
    """The ``k`` largest (or smallest) values in order, and where they are."""
    indices = mx.stop_gradient(argsort_descending(x, axis) if largest else mx.argsort(x, axis=axis))
    indices = mx.moveaxis(mx.moveaxis(indices, axis, -1)[..., :k], -1, axis)
    return mx.take_along_axis(x, indices, axis=axis), indices.astype(mx.int64)


def pick(x: mx.array, indices: mx.array, axis: int, keepdims: bool) -> tuple[mx.array, mx.array]:
    """The value at one index per row, and the index."""
    indices = mx.stop_gradient(indices)
    values, indices = mx.take_along_axis(x, indices, axis=axis), indices.astype(mx.int64)
    return (values, indices) if keepdims else (values.squeeze(axis), indices.squeeze(axis))


def kthvalue(x: mx.array, k: int, axis: int = -1, keepdims: bool = False) -> tuple[mx.array, mx.array]:
    """The ``k``-th smallest value (from 1) and where it is."""
    return pick(x, mx.take(mx.argsort(x, axis=axis), mx.array([k - 1]), axis=axis), axis, keepdims)


def median(x: mx.array, axis: int = -1, keepdims: bool = False, skip_nan: bool = False) -> tuple[mx.array, mx.array]:
    """The lower middle value and where it is; NaN wins, unless it is skipped."""
    nans = mx.isnan(x).sum(axis=axis, keepdims=True)
    size = x.shape[axis]
    # NaN sorts to the end: without them the middle moves down, and with one the last value is NaN.
    middle = mx.maximum(size - nans - 1, 0) // 2 if skip_nan else mx.where(nans > 0, size - nans, (size - 1) // 2)
    indices = mx.take_along_axis(mx.argsort(x, axis=axis), middle, axis=axis)
    return pick(x, indices, axis, keepdims)


def mode(x: mx.array, axis: int = -1, keepdims: bool = False) -> tuple[mx.array, mx.array]:
    """The most frequent value, the smallest of several, and the last place where it stands."""
    rows = mx.moveaxis(x, axis, -1)
    order = mx.argsort(rows, axis=-1)
    values = mx.take_along_axis(rows, order, axis=-1)
    position = mx.arange(rows.shape[-1])
    starts = mx.concatenate([mx.ones_like(values[..., :1], mx.bool_), values[..., 1:] != values[..., :-1]], axis=-1)
    run = position - mx.cummax(mx.where(starts, position, 0), axis=-1)
    indices = mx.take_along_axis(order, run.argmax(axis=-1, keepdims=True), axis=-1)
    return pick(x, mx.moveaxis(indices, -1, axis), axis, keepdims)


def cummax(x: mx.array, axis: int) -> tuple[mx.array, mx.array]:
    """The largest values so far and where they stand last."""
    values = mx.cummax(x, axis=axis)
    return values, last_index((x == values) | mx.isnan(x), axis)


def cummin(x: mx.array, axis: int) -> tuple[mx.array, mx.array]:
    """The smallest values so far and where they stand last."""
    values = mx.cummin(x, axis=axis)
    return values, last_index((x == values) | mx.isnan(x), axis)


def last_index(hits: mx.array, axis: int) -> mx.array:
    """For each place along the axis, the last place so far where ``hits`` is true."""
    position = mx.moveaxis(mx.arange(hits.shape[axis]).reshape(-1, *[1] * (hits.ndim - 1)), 0, axis)
    return mx.cummax(mx.where(hits, position, 0), axis=axis).astype(mx.int64)
