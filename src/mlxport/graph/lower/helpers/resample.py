"""Resizing of channels-last arrays as torch.nn.functional.interpolate does it."""

from __future__ import annotations

import math

import mlx.core as mx


def interpolate(x, size=None, scale=None, mode="nearest", align_corners=False, antialias=False):
    """Resize the axes between the first and the last of (N, ..., C) to ``size``, or by the factors ``scale``.

    Where both are given, ``scale`` says how far apart the samples are. Modes: nearest, nearest-exact, linear (in every
    number of dimensions), cubic, lanczos.
    """
    for axis in range(1, x.ndim - 1):
        factor = None if scale is None else scale[axis - 1]
        n = x.shape[axis]
        count = int(math.floor(n * factor)) if size is None else size[axis - 1]
        if align_corners and "nearest" not in mode:
            step = (n - 1) / (count - 1) if count > 1 else 0.0
        else:
            step = 1 / factor if factor else n / count
        if mode == "linear" and count == n and not antialias:
            continue
        if mode == "nearest":
            x = mx.take(x, nearest_index(mx.arange(count) * step, n), axis=axis)
        elif mode == "nearest-exact":
            x = mx.take(x, nearest_index((mx.arange(count) + 0.5) * step, n), axis=axis)
        elif antialias:
            weights = antialias_weights(n, count, step, mode)
            x = (x.swapaxes(axis, -1) @ weights.T).swapaxes(axis, -1)
        else:
            x = resample_axis(x, axis, count, step, mode, align_corners)
    return x


def nearest_index(place, n):
    """The element of n that contains each place."""
    return mx.minimum(mx.floor(place).astype(mx.int32), n - 1)


def resample_axis(x, axis, count, step, mode, align_corners):
    """Linear or cubic interpolation of an axis at ``count`` places that are ``step`` apart."""
    n = x.shape[axis]
    index = mx.arange(count).astype(mx.float32)
    place = index * step if align_corners else (index + 0.5) * step - 0.5
    if mode == "linear":
        place = mx.maximum(place, 0)
    first = mx.floor(place)
    t = place - first
    if mode == "linear":
        taps = [(0, 1 - t), (1, t)]
    else:
        # Keys' cubic convolution with a = -0.75.
        a = -0.75
        near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
        far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (1 + t, 2 - t)]
        taps = [(-1, far[0]), (0, near[0]), (1, near[1]), (2, far[1])]
    shape = [1] * x.ndim
    shape[axis] = count
    first = first.astype(mx.int32)
    return sum(
        mx.take(x, mx.clip(first + offset, 0, n - 1), axis=axis) * weight.reshape(shape) for offset, weight in taps
    )


def antialias_weights(n, count, step, mode):
    """Weights (count, n) of a resampling whose filter widens as far as it shrinks the axis."""
    support = {"linear": 1.0, "cubic": 2.0, "lanczos": 3.0}[mode] * max(step, 1.0)
    center = (mx.arange(count)[:, None] + 0.5) * step
    place = mx.arange(n)[None, :]
    low = mx.maximum((center - support + 0.5).astype(mx.int32), 0)
    high = mx.minimum((center + support + 0.5).astype(mx.int32), n)
    d = mx.abs((place - center + 0.5) / max(step, 1.0))
    if mode == "linear":
        weights = mx.maximum(1 - d, 0)
    elif mode == "cubic":
        a = -0.5
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weights = mx.where(d < 1, near, mx.where(d < 2, far, 0))
    else:
        safe = mx.where(d == 0, 1, d) * math.pi
        weights = mx.where(d == 0, 1, mx.where(d < 3, 3 * mx.sin(safe) * mx.sin(safe / 3) / (safe * safe), 0))
    weights = mx.where((place >= low) & (place < high), weights, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def grid_sample(x, grid, mode="bilinear", padding="zeros", align_corners=False):
    """Sample (N, H, W, C) or (N, D, H, W, C) at the places of a grid (N, ..., axes), in [-1, 1], last axis of x first.

    Modes: bilinear, nearest, bicubic (two dimensions); padding: zeros, border, reflection.
    """
    sizes = x.shape[1:-1]
    grid = grid.astype(mx.float32)
    places = []
    for axis, n in enumerate(sizes):
        place = grid[..., len(sizes) - 1 - axis]
        place = (place + 1) / 2 * (n - 1) if align_corners else ((place + 1) * n - 1) / 2
        places.append(place if mode == "bicubic" else bounded_place(place, n, padding, align_corners))
    if mode == "nearest":
        return gather_places(x, [mx.round(place) for place in places], padding, align_corners)
    firsts = [mx.floor(place) for place in places]
    fractions = [place - first for place, first in zip(places, firsts, strict=True)]
    if mode == "bilinear":
        taps = [[(0, 1 - t), (1, t)] for t in fractions]
    else:
        a = -0.75
        taps = []
        for t in fractions:
            near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
            far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (1 + t, 2 - t)]
            taps.append([(-1, far[0]), (0, near[0]), (1, near[1]), (2, far[1])])
    total, width = 0, len(taps[0])
    for corner in range(width ** len(sizes)):
        chosen = [taps[axis][corner // width**axis % width] for axis in range(len(sizes))]
        corner_places = [first + offset for first, (offset, _) in zip(firsts, chosen, strict=True)]
        if mode == "bicubic":
            corner_places = [
                bounded_place(place, n, padding, align_corners) for place, n in zip(corner_places, sizes, strict=True)
            ]
        weight = math.prod([w for _, w in chosen], start=mx.array(1.0))
        total = total + gather_places(x, corner_places, padding, align_corners) * weight[..., None]
    return total


def bounded_place(place, n, padding, align_corners):
    """A place in an axis of n elements, brought inside as the padding mode says."""
    if padding == "reflection":
        low, high = (0.0, n - 1.0) if align_corners else (-0.5, n - 0.5)
        span = high - low
        if span <= 0:
            return mx.zeros_like(place)
        distance = mx.abs(place - low)
        flips, extra = mx.floor(distance / span), mx.remainder(distance, span)
        place = mx.where(flips % 2 == 0, extra + low, span - extra + low)
    return place if padding == "zeros" else mx.clip(place, 0, n - 1)


def gather_places(x, places, padding, align_corners):
    """Elements of (N, ..., C) at whole places in each axis; zeros outside."""
    batch, sizes, channels = x.shape[0], x.shape[1:-1], x.shape[-1]
    flat, inside = mx.array(0), mx.array(True)
    for place, n in zip(places, sizes, strict=True):
        inside = inside & (place >= 0) & (place <= n - 1)
        flat = flat * n + mx.clip(mx.nan_to_num(place), 0, n - 1).astype(mx.int32)
    rows = x.reshape(batch, -1, channels)[mx.arange(batch)[:, None], flat.reshape(batch, -1)]
    return mx.where(inside[..., None], rows.reshape(*flat.shape, channels), 0)


def affine_grid(theta, sizes, align_corners=False):
    """The grid (N, ..., axes) of places that the affine maps theta (N, axes, axes + 1) give."""
    axes = []
    for n in sizes:
        line = mx.linspace(-1, 1, n) if n > 1 else mx.zeros((n,))
        axes.append(line if align_corners or n < 1 else line * (n - 1) / n)
    mesh = mx.meshgrid(*axes, indexing="ij")[::-1]  # torch counts coordinates from the last axis
    points = mx.stack([*mesh, mx.ones(sizes)], axis=-1).astype(theta.dtype)
    grid = points.reshape(1, -1, len(sizes) + 1) @ theta.swapaxes(1, 2)
    return grid.reshape(theta.shape[0], *sizes, len(sizes))
