"""Padding modes that MLX does not have."""

from __future__ import annotations

import mlx.core as mx


def pad_by_index(x, widths, mode):
    """Pad each axis by (before, after) by reflection, its edge, or circularly; negative widths crop."""
    for axis, (before, after) in enumerate(widths):
        if before == after == 0:
            continue
        size = x.shape[axis]
        index = mx.arange(-before, size + after)
        if mode == "reflect":
            index = size - 1 - mx.abs(size - 1 - mx.abs(index))
        elif mode == "replicate":
            index = mx.clip(index, 0, size - 1)
        else:
            index = index % size
        x = mx.take(x, index, axis=axis)
    return x


def pad_or_crop(x, widths, value=0):
    """Pad each axis by (before, after) with a value; negative widths crop."""
    cut = tuple(slice(max(-before, 0), x.shape[i] + min(after, 0)) for i, (before, after) in enumerate(widths))
    widths = [(max(before, 0), max(after, 0)) for before, after in widths]
    return mx.pad(x[cut], widths, constant_values=mx.array(value, x.dtype))
