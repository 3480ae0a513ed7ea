"""Diagonals, windows and strides."""

from __future__ import annotations

from typing import Any

import mlx.core as mx


def diag_embed(x: mx.array, offset: int = 0, axis1: int = -2, axis2: int = -1) -> mx.array:
    """Matrices, in two new axes, with the last axis of ``x`` on a diagonal."""
    size = x.shape[-1] + abs(offset)
    x = mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(max(offset, 0), max(-offset, 0))])  # element j goes to column j
    rows, columns = mx.arange(size)[:, None], mx.arange(size)
    matrices = mx.where(columns - rows == offset, x[..., None, :], mx.zeros((), dtype=x.dtype))
    axis1, axis2 = axis1 % matrices.ndim, axis2 % matrices.ndim
    order = list(range(matrices.ndim - 2))
    for axis, source in sorted([(axis1, matrices.ndim - 2), (axis2, matrices.ndim - 1)]):
        order.insert(axis, source)
    return matrices.transpose(*order)


def diagonal_scatter(x: mx.array, src: mx.array, offset: int = 0, axis1: int = 0, axis2: int = 1) -> mx.array:
    """``x`` with the diagonal of two axes replaced by the last axis of ``src``."""
    if src.size == 0:
        return x
    order = [axis for axis in range(x.ndim) if axis not in (axis1, axis2)] + [axis1, axis2]
    matrices = x.transpose(*order)
    rows, columns = mx.arange(matrices.shape[-2]), mx.arange(matrices.shape[-1])
    element = mx.clip(rows + min(offset, 0), 0, src.shape[-1] - 1)  # of src, in each row
    matrices = mx.where(columns - rows[:, None] == offset, mx.take(src, element, axis=-1)[..., None], matrices)
    return matrices.transpose(*[order.index(axis) for axis in range(x.ndim)])


def unfold(x: mx.array, axis: int, size: int, step: int) -> mx.array:
    """Windows of ``size`` every ``step`` along an axis, put in a new last axis."""
    starts = mx.arange(0, x.shape[axis] - size + 1, step)
    windows = mx.take(x, starts[:, None] + mx.arange(size), axis=axis)
    return mx.moveaxis(windows, axis + 1, -1)


def strided(x: mx.array, size: Any, stride: Any, offset: int = 0) -> mx.array:
    """The elements of ``x``, in order, through strides; raises ValueError where these reach beyond the last."""
    if 0 in size:
        return mx.zeros(size, dtype=x.dtype)
    if offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True)) >= x.size:
        raise ValueError(f"{x.size} elements are too few for size {size} with strides {stride} from {offset} on")
    return mx.as_strided(x, size, stride, offset)


def strided_positions(size: Any, stride: Any, offset: int) -> mx.array:
    """Where in memory the elements of a strided view lie."""
    positions = mx.array(offset)
    for count, step in zip(size, stride, strict=True):
        positions = positions[..., None] + mx.arange(count) * step
    return positions


def as_strided_scatter(x: mx.array, src: mx.array, size: Any, stride: Any, offset: int = 0) -> mx.array:
    """``x`` with the elements of a strided view replaced by ``src``."""
    flat = mx.array(x.reshape(-1))  # assignment changes this handle only
    flat[strided_positions(size, stride, offset)] = src
    return flat.reshape(x.shape)
