"""Reading and writing by masks and index arrays."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx


def flat_nonzero(x: mx.array) -> mx.array:
    """Positions in the flattened array of what is not zero; waits for the values of ``x``."""
    mask = x.reshape(-1) != 0
    count = int(mask.astype(mx.int32).sum().item())
    return mx.sort(mx.where(mask, mx.arange(mask.size), mask.size))[:count]


def unraveled(positions: mx.array, shape: Any) -> mx.array:
    """Positions in a flattened array as rows of indices."""
    columns = []
    for axis, size in enumerate(shape):
        columns.append(positions // math.prod(shape[axis + 1 :]) % size)
    return mx.stack(columns, axis=1) if columns else mx.zeros((positions.size, 0), dtype=positions.dtype)


def nonzero(x: mx.array) -> mx.array:
    """Indices of what is not zero, a row each; waits for the values of ``x``."""
    return unraveled(flat_nonzero(x), x.shape).astype(mx.int64)


def nonzero_static(x: mx.array, size: int, fill_value: int = -1) -> mx.array:
    """The first ``size`` rows of the indices of what is not zero, filled up with ``fill_value``."""
    mask = x.reshape(-1) != 0
    order = mx.sort(mx.where(mask, mx.arange(mask.size), mask.size))[:size]
    order = mx.concatenate([order, mx.full(max(0, size - mask.size), mask.size, dtype=order.dtype)])
    return mx.where((order < mask.size)[:, None], unraveled(order, x.shape), fill_value).astype(mx.int64)


def masked_select(x: mx.array, mask: mx.array) -> mx.array:
    """Elements of ``x`` where the mask is true; waits for the values of the mask."""
    x, mask = mx.broadcast_arrays(x, mask)
    return x.reshape(-1)[flat_nonzero(mask)]


def masked_scatter(x: mx.array, mask: mx.array, source: mx.array) -> mx.array:
    """``x`` with the elements of ``source``, in order, where the mask is true."""
    x, mask = mx.broadcast_arrays(x, mask)
    if source.size == 0:
        return x
    order = mx.cumsum(mask.reshape(-1).astype(mx.int32)).reshape(mask.shape) - 1
    return mx.where(mask, source.reshape(-1)[mx.clip(order, 0, source.size - 1)], x)


def index_put(x: mx.array, indices: Any, values: mx.array) -> mx.array:
    """``x`` with ``x[indices]`` replaced by ``values``; None stands for a whole axis."""
    x = mx.array(x)  # assignment changes this handle only
    x[tuple(slice(None) if index is None else index for index in indices)] = values
    return x


def grid_index(index: mx.array, axis: int) -> Any:
    """The subscript that puts element (i, j, ...) of ``index`` into ``axis`` and i, j, ... into the other axes."""
    places = []
    for other, size in enumerate(index.shape):
        shape = [1] * index.ndim
        shape[other] = size
        places.append(index if other == axis else mx.arange(size).reshape(shape))
    return tuple(places)


def scatter(x: mx.array, axis: int, index: mx.array, src: mx.array) -> mx.array:
    """``x`` with ``x[index[i, j], j] = src[i, j]`` (for axis 0), where ``index`` may be smaller than ``x``."""
    x = mx.array(x)  # assignment changes this handle only
    x[grid_index(index, axis)] = src
    return x


def scatter_add(x: mx.array, axis: int, index: mx.array, src: mx.array) -> mx.array:
    """``x`` with ``x[index[i, j], j] += src[i, j]`` (for axis 0); an index may be there more than once."""
    return x.at[grid_index(index, axis)].add(src)


def reduced_at(x: mx.array, where: Any, src: mx.array, reduce: str, include_self: bool) -> mx.array:
    """``x[where]`` combined with ``src`` by sum, prod, mean, amax or amin; places may be there more than once."""
    if not include_self:
        lowest, highest = -mx.inf, mx.inf
        if x.dtype == mx.bool_:
            lowest, highest = False, True
        elif not mx.issubdtype(x.dtype, mx.inexact):
            lowest, highest = mx.iinfo(x.dtype).min, mx.iinfo(x.dtype).max
        x = mx.array(x)  # assignment changes this handle only
        x[where] = mx.array({"prod": 1, "amax": lowest, "amin": highest}.get(reduce, 0), dtype=x.dtype)
    if reduce == "mean":
        total = x.at[where].add(src)
        counts = mx.full(x.shape, int(include_self), dtype=mx.int32).at[where].add(mx.ones(src.shape, dtype=mx.int32))
        counts = mx.maximum(counts, 1)
        if mx.issubdtype(x.dtype, mx.inexact):
            return total / counts
        return total // counts.astype(total.dtype)
    places = x.at[where]
    if reduce == "prod":
        return places.multiply(src)
    if reduce == "amax":
        return places.maximum(src)
    return places.minimum(src) if reduce == "amin" else places.add(src)


def scatter_reduce(
    x: mx.array, axis: int, index: mx.array, src: mx.array, reduce: str, include_self: bool = True
) -> mx.array:
    """``x[index[i, j], j]`` combined with ``src[i, j]`` (for axis 0)."""
    return reduced_at(x, grid_index(index, axis), src, reduce, include_self)


def index_reduce(
    x: mx.array, axis: int, index: mx.array, src: mx.array, reduce: str, include_self: bool = True
) -> mx.array:
    """``x[index[i]]`` combined with ``src[i]`` (for axis 0)."""
    return reduced_at(x, (*[slice(None)] * axis, index), src, reduce, include_self)
