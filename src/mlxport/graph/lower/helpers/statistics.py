"""Counts and histograms."""

from __future__ import annotations

import mlx.core as mx


def bincount(x: mx.array, weights: mx.array | None = None, minlength: int = 0) -> mx.array:
    """How often each integer from 0 on occurs, or the sum of its weights."""
    size = max(minlength, int(x.max()) + 1 if x.size else 0)
    if weights is None:
        return mx.zeros(size, mx.int32).at[x].add(1).astype(mx.int64)
    return mx.zeros(size, mx.float32).at[x].add(weights.astype(mx.float32))


def histc(x: mx.array, bins: int, low: float, high: float) -> mx.array:
    """How many values fall in each of ``bins`` equal parts; outside ones are not counted."""
    x = x.reshape(-1)
    start, end = (x.min(), x.max()) if low == high else (mx.array(low, x.dtype), mx.array(high, x.dtype))
    start, end = mx.where(start == end, start - 1, start), mx.where(start == end, end + 1, end)
    index = mx.minimum(mx.floor((x - start) * bins / (end - start)).astype(mx.int32), bins - 1)
    inside = (x >= start) & (x <= end)
    # A last extra part takes what lies outside.
    return mx.zeros(bins + 1, mx.int32).at[mx.where(inside, index, bins)].add(1)[:bins].astype(x.dtype)


def equal_edges(x: mx.array, bins: int, low: float | None = None, high: float | None = None) -> mx.array:
    """Edges of ``bins`` equal parts of [low, high], of the data's range without them."""
    start = x.min() if low is None else mx.array(low, x.dtype)
    end = x.max() if high is None else mx.array(high, x.dtype)
    start, end = mx.where(start == end, start - 0.5, start), mx.where(start == end, end + 0.5, end)
    steps = mx.arange(bins + 1)
    # From both ends, as torch fills it, so that the last edge is exact.
    return mx.where(
        2 * steps <= bins, start + steps * (end - start) / bins, end - (bins - steps) * (end - start) / bins
    )


def histogramdd(x: mx.array, edges: list[mx.array], weight: mx.array | None = None, density: bool = False) -> mx.array:
    """Weights of the points ``x`` (points by coordinates) in the cells between the edges of each coordinate."""
    cell, inside, cells = mx.array(0), mx.array(True), 1
    for axis, edge in enumerate(edges):
        column, bins = x[:, axis], edge.shape[0] - 1
        # The last part includes its right edge.
        part = mx.minimum(mx.searchsorted(edge, column, side="right").astype(mx.int32) - 1, bins - 1)
        inside = inside & (column >= edge[0]) & (column <= edge[-1])
        cell, cells = cell * bins + part, cells * bins
    weight = mx.ones(x.shape[0], x.dtype) if weight is None else weight
    counts = mx.zeros(cells + 1, x.dtype).at[mx.where(inside, cell, cells)].add(weight)[:cells]
    result = counts.reshape([edge.shape[0] - 1 for edge in edges])
    if density:
        result = result / result.sum()
        for axis, edge in enumerate(edges):
            shape = [1] * len(edges)
            shape[axis] = -1
            result = result / (edge[1:] - edge[:-1]).reshape(shape)
    return result
