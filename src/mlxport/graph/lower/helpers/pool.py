"""Pooling of channels-last arrays in torch's terms: dilation, ceil_mode, windows over the padding, indices."""

from __future__ import annotations

import math

import mlx.core as mx


def pooling_widths(sizes, kernel, stride, padding, dilation, ceil_mode):
    """How much to pad each axis before and after so that every window of a pooling fits."""
    widths = []
    for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        span = n + 2 * p - d * (k - 1) - 1
        count = span // s + 1
        # With ceil_mode a last window may hang over the end, if it does not start in the padding.
        if ceil_mode and span % s and count * s < n + p:
            count += 1
        widths.append((p, max((count - 1) * s + d * (k - 1) + 1 - n - p, 0)))
    return widths


def sliding_windows(x, kernel, stride, dilation):
    """A view (N, *positions, *kernel, C) of (N, ..., C)."""
    strides = [math.prod(x.shape[axis + 1 :]) for axis in range(x.ndim)]
    inner = strides[1:-1]
    counts = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[1:-1], kernel, stride, dilation, strict=True)
    ]  # fmt: skip
    steps = [i * s for i, s in zip(inner, stride, strict=True)]
    taps = [i * d for i, d in zip(inner, dilation, strict=True)]
    return mx.as_strided(x, (x.shape[0], *counts, *kernel, x.shape[-1]), (strides[0], *steps, *taps, 1))


def max_pool(x, kernel, stride, padding=None, dilation=None, ceil_mode=False):
    """The maximum of each window of (N, ..., C); one number per axis for every option."""
    rank = len(kernel)
    padding, dilation = padding or [0] * rank, dilation or [1] * rank
    widths = pooling_widths(x.shape[1:-1], kernel, stride, padding, dilation, ceil_mode)
    lowest = -mx.inf if mx.issubdtype(x.dtype, mx.floating) else mx.iinfo(x.dtype).min
    x = mx.pad(x, [(0, 0), *widths, (0, 0)], constant_values=mx.array(lowest, x.dtype))
    return sliding_windows(x, kernel, stride, dilation).max(axis=tuple(range(1 + rank, 1 + 2 * rank)))


def max_pool_with_indices(x, kernel, stride, padding=None, dilation=None, ceil_mode=False):
    """max_pool, and where in the flattened axes of x each maximum lies."""
    rank = len(kernel)
    padding, dilation = padding or [0] * rank, dilation or [1] * rank
    sizes = x.shape[1:-1]
    widths = pooling_widths(sizes, kernel, stride, padding, dilation, ceil_mode)
    positions = []
    for n, k, s, d, (before, after) in zip(sizes, kernel, stride, dilation, widths, strict=True):
        starts = mx.arange(0, n + before + after - d * (k - 1), s) - before
        positions.append(starts[:, None] + mx.arange(0, k * d, d))
    return max_of_windows(x, positions)


def max_of_windows(x, positions):
    """Maxima of windows of (N, ..., C) and where in the flattened axes they lie.

    positions[axis] is an array (windows, taps) of places in that axis; places outside the axis do not count.
    """
    rank, sizes = len(positions), x.shape[1:-1]
    lowest = -mx.inf if mx.issubdtype(x.dtype, mx.floating) else mx.iinfo(x.dtype).min
    flat, inside = mx.array(0), mx.array(True)
    for axis, (n, places) in enumerate(zip(sizes, positions, strict=True)):
        shape = [1] * 2 * rank
        shape[axis], shape[rank + axis] = places.shape  # (windows of each axis, taps of each axis)
        flat = flat * n + mx.clip(places, 0, n - 1).reshape(shape)
        inside = inside & ((places >= 0) & (places < n)).reshape(shape)
    counts, taps = flat.shape[:rank], math.prod(flat.shape[rank:])
    flat, inside = flat.reshape(-1, taps), inside.reshape(-1, taps)
    taken = mx.take(x.reshape(x.shape[0], -1, x.shape[-1]), flat, axis=1)  # (N, windows, taps, C)
    # Where a whole window is minus infinity, torch points to its first place inside.
    rank_in_window = mx.where(inside, 0, -1)[None, :, :, None]
    taken = mx.where(inside[:, :, None], taken, mx.array(lowest, x.dtype))
    values = taken.max(axis=2)
    best = mx.where(taken == values[:, :, None], rank_in_window, -2).argmax(axis=2)  # (N, windows, C)
    indices = mx.take_along_axis(mx.broadcast_to(flat[None, :, :, None], taken.shape), best[:, :, None], axis=2)
    shape = (x.shape[0], *counts, x.shape[-1])
    return values.reshape(shape), indices.reshape(shape).astype(mx.int64)


def avg_pool(x, kernel, stride, padding=None, ceil_mode=False, count_include_pad=True, divisor=None):
    """The mean of each window of (N, ..., C), or its sum over a given divisor."""
    rank = len(kernel)
    padding = padding or [0] * rank
    sizes = x.shape[1:-1]
    # With ceil_mode a window may be larger than all that there is.
    kernel = [min(k, n + 2 * p) for k, n, p in zip(kernel, sizes, padding, strict=True)]
    widths = pooling_widths(sizes, kernel, stride, padding, [1] * rank, ceil_mode)
    windows = sliding_windows(mx.pad(x, [(0, 0), *widths, (0, 0)]), kernel, stride, [1] * rank)
    sums = windows.sum(axis=tuple(range(1 + rank, 1 + 2 * rank)))
    if divisor is not None:
        return sums / divisor
    # How many elements count: padding only where it is asked for, what ceil_mode adds behind it never.
    for axis, (n, k, s, p, (before, after)) in enumerate(zip(sizes, kernel, stride, padding, widths, strict=True)):
        edge = p if count_include_pad else 0
        starts = mx.arange(0, n + before + after - k + 1, s) - before
        counts = mx.minimum(starts + k, n + edge) - mx.maximum(starts, -edge)
        sums = sums / counts.astype(x.dtype if mx.issubdtype(x.dtype, mx.floating) else mx.float32).reshape(
            [-1 if other == axis + 1 else 1 for other in range(x.ndim)]
        )
    return sums


def adaptive_regions(size, count):
    """First places of the regions that split an axis into ``count`` parts of about equal length, and their ends."""
    index = mx.arange(count)
    return index * size // count, ((index + 1) * size + count - 1) // count


def adaptive_avg_pool(x, counts):
    """Means of (N, ..., C) over regions that split each axis into the given number of parts."""
    for axis, count in enumerate(counts, 1):
        size = x.shape[axis]
        starts, ends = adaptive_regions(size, count)
        place = mx.arange(size)
        inside = (place >= starts[:, None]) & (place < ends[:, None])  # (regions, size)
        weights = (inside / (ends - starts)[:, None]).astype(x.dtype)
        x = (x.swapaxes(axis, -1) @ weights.T).swapaxes(axis, -1)
    return x


def adaptive_max_pool(x, counts):
    """Maxima of (N, ..., C) over regions that split each axis into the given number of parts, and their places."""
    positions = []
    for size, count in zip(x.shape[1:-1], counts, strict=True):
        starts, ends = adaptive_regions(size, count)
        taps = mx.arange(-(-size // count) + 1)
        places = starts[:, None] + taps
        positions.append(mx.where(places < ends[:, None], places, -1))
    return max_of_windows(x, positions)
