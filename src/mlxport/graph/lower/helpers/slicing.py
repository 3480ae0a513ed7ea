"""Parts of arrays."""

from __future__ import annotations

from typing import Any

import mlx.core as mx


def select_scatter(x: mx.array, src: mx.array, axis: int, index: int) -> mx.array:
    """``x`` with the entry ``index`` of an axis replaced by ``src``."""
    x = mx.array(x)  # assignment changes this handle only
    x[(slice(None),) * axis + (index,)] = src
    return x


def slice_scatter(
    x: mx.array, src: mx.array, axis: int, start: int | None = None, end: int | None = None, step: int = 1
) -> mx.array:
    """``x`` with the slice ``start:end:step`` of an axis replaced by ``src``."""
    x = mx.array(x)  # assignment changes this handle only
    x[(slice(None),) * axis + (slice(start, end, step),)] = src
    return x


def split(x: mx.array, size: int, axis: int = 0) -> Any:
    """Parts of ``size`` along an axis, the last one smaller if need be."""
    return mx.split(x, list(range(size, x.shape[axis], size)), axis=axis)
