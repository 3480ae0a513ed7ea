"""Searching sorted arrays, distinct values, repetitions and segments."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlxport.graph.lower.helpers.indexing import flat_nonzero


def searchsorted(sequences: mx.array, values: mx.array, side: str = "left") -> mx.array:
    """Where to insert ``values`` into sequences sorted along the last axis: how many elements lie before."""
    before = (
        sequences[..., None, :] <= values[..., None] if side == "right" else sequences[..., None, :] < values[..., None]
    )
    return before.astype(mx.int64).sum(axis=-1)


def distinct(first: mx.array) -> Any:
    """From the marks of the first ones of runs: where runs begin, the run of every element, the lengths of runs."""
    starts = flat_nonzero(first)
    ends = mx.concatenate([starts[1:], mx.array([first.size], dtype=starts.dtype)])[: starts.size]
    return starts, mx.cumsum(first.astype(mx.int64)) - 1, (ends - starts).astype(mx.int64)


def unique_consecutive(x: mx.array) -> Any:
    """Values that differ from the one before, for every element which one it is, and lengths of the runs."""
    flat = x.reshape(-1)
    first = mx.concatenate([mx.ones(min(1, flat.size), dtype=mx.bool_), flat[1:] != flat[:-1]])
    starts, runs, counts = distinct(first)
    return flat[starts], runs.reshape(x.shape), counts


def unique(x: mx.array) -> Any:
    """Distinct values in order, for every element which one it is, and how often each is there."""
    flat = x.reshape(-1)
    order = mx.argsort(flat)
    values, runs, counts = unique_consecutive(flat[order])
    inverse = mx.zeros(flat.size, dtype=mx.int64)
    inverse[order] = runs
    return values, inverse.reshape(x.shape), counts


def unique_consecutive_rows(x: mx.array, axis: int) -> Any:
    """Subarrays along an axis that differ from the one before, which one each is, and lengths of the runs."""
    rows = mx.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    changed = (rows[1:] != rows[:-1]).any(axis=1)
    starts, runs, counts = distinct(mx.concatenate([mx.ones(min(1, x.shape[axis]), dtype=mx.bool_), changed]))
    return mx.take(x, starts, axis=axis), runs, counts


def unique_rows(x: mx.array, axis: int) -> Any:
    """Distinct subarrays along an axis in lexicographic order, which one each is, and how often each is there."""
    rows = mx.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    rank = mx.zeros(rows.shape[0], dtype=mx.int64)
    for column in rows.T:  # rank by the columns so far, then by this one
        place = mx.searchsorted(mx.sort(column), column).astype(mx.int64)
        key = rank * rows.shape[0] + place
        rank = mx.searchsorted(mx.sort(key), key).astype(mx.int64)
    ranks, inverse, counts = unique(rank)
    first = mx.sort(mx.searchsorted(mx.sort(rank), ranks))
    return mx.take(x, mx.argsort(rank)[first], axis=axis), inverse, counts


def repeat_indices(repeats: mx.array, size: int | None = None) -> mx.array:
    """Index ``i`` as often as ``repeats[i]`` says; without the total size it waits for the values."""
    ends = mx.cumsum(repeats.astype(mx.int64))
    total = int(ends[-1].item()) if size is None else size
    return mx.searchsorted(ends, mx.arange(total), side="right").astype(repeats.dtype)


def segment_reduce(
    x: mx.array,
    reduce: str,
    lengths: mx.array | None = None,
    offsets: mx.array | None = None,
    axis: int = 0,
    initial: float | None = None,
) -> mx.array:
    """Reductions (sum, mean, prod, max, min) of the segments that lengths or offsets cut an axis into."""
    if lengths is not None:
        ends = mx.cumsum(lengths, axis=-1)
        starts = ends - lengths
    else:
        starts, ends = offsets[..., :-1], offsets[..., 1:]
    position = mx.arange(x.shape[axis])
    inside = (position >= starts[..., None]) & (position < ends[..., None])  # (..., segment, position)
    inside = inside.reshape(inside.shape + (1,) * (x.ndim - axis - 1))
    neutral = {"prod": 1.0, "max": -mx.inf, "min": mx.inf}.get(reduce, 0.0)
    parts = mx.where(inside, mx.expand_dims(x, axis), mx.array(neutral, dtype=x.dtype))
    count = (ends - starts).reshape(starts.shape + (1,) * (x.ndim - axis - 1))
    if reduce == "max":
        result = parts.max(axis=axis + 1)
        return result if initial is None else mx.maximum(result, initial)
    if reduce == "min":
        result = parts.min(axis=axis + 1)
        return result if initial is None else mx.minimum(result, initial)
    if reduce == "prod":
        return parts.prod(axis=axis + 1) * (1 if initial is None else initial)
    result = parts.sum(axis=axis + 1) + (0 if initial is None else initial)
    if reduce == "sum":
        return result
    empty = mx.array(mx.nan if initial is None else initial, dtype=x.dtype)
    return mx.where(count > 0, result / mx.maximum(count, 1), empty)
