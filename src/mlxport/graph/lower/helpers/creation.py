"""Ranges as torch fills them."""

from __future__ import annotations

import math

import mlx.core as mx


def truncated_arange(start: float, end: float, step: float = 1, dtype: mx.Dtype = mx.int64) -> mx.array:
    """A range of integers whose ends are floats: as many as the floats make, from ends cut to integers."""
    count = max(0, math.ceil((end - start) / step))
    return int(start) + int(step) * mx.arange(count, dtype=dtype)
