"""Fractional pooling, the inverses of max pooling, and the patches of an image as columns."""

from __future__ import annotations

import math

import mlx.core as mx


def fractional_max_pool(x, kernel, counts, samples):
    """Maxima of windows at pseudo-random places, and where in the flattened axes they lie.

    x is (N, ..., C); samples in [0, 1) are (N, C, axes), the last axis of x first where torch says so.
    """
    batch, sizes, channels = x.shape[0], x.shape[1:-1], x.shape[-1]
    rank = len(kernel)
    flat = mx.array(0)
    for axis, (n, k, count) in enumerate(zip(sizes, kernel, counts, strict=True)):
        # torch draws for width, height in two dimensions and for time, height, width in three.
        sample = samples[:batch, :, rank - 1 - axis if rank == 2 else axis][:, None, :]  # (N, 1, C)
        if count > 1:
            alpha = (n - k) / (count - 1)
            index = mx.arange(count)[:, None]
            starts = ((index + sample) * alpha).astype(mx.int32) - (sample * alpha).astype(mx.int32)
            starts = mx.where(index == count - 1, n - k, starts)
        else:
            starts = mx.full((batch, 1, channels), n - k)
        places = starts[:, :, None] + mx.arange(k)[:, None]  # (N, count, taps, C)
        shape = [batch, *[1] * 2 * rank, channels]
        shape[1 + axis], shape[1 + rank + axis] = count, k
        flat = flat * n + places.reshape(shape)
    flat = mx.broadcast_to(flat, (batch, *counts, *kernel, channels))
    flat = flat.reshape(batch, math.prod(counts), -1, channels)
    taken = mx.take_along_axis(x.reshape(batch, -1, channels), flat.reshape(batch, -1, channels), axis=1)
    taken = taken.reshape(flat.shape)
    best = taken.argmax(axis=2, keepdims=True)
    shape = (batch, *counts, channels)
    values, indices = (mx.take_along_axis(a, best, axis=2).reshape(shape) for a in (taken, flat))
    return values, indices.astype(mx.int64)


def max_unpool(x, indices, sizes):
    """Zeros of the given sizes with x at the places that indices name, in the last len(sizes) axes flattened."""
    lead = x.shape[: x.ndim - len(sizes)]
    zeros = mx.zeros((*lead, math.prod(sizes)), dtype=x.dtype)
    filled = mx.put_along_axis(zeros, indices.reshape(*lead, -1), x.reshape(*lead, -1), axis=-1)
    return filled.reshape(*lead, *sizes)


def max_pool_backward(grad, x, indices, rank):
    """Gradient of max pooling: each value of grad is added where its maximum lies."""
    lead, sizes = x.shape[: x.ndim - rank], x.shape[x.ndim - rank :]
    rows = math.prod(lead)
    zeros = mx.zeros((rows, math.prod(sizes)), dtype=x.dtype)
    places = indices.reshape(rows, -1)
    return zeros.at[mx.arange(rows)[:, None], places].add(grad.reshape(rows, -1)).reshape(x.shape)


def im2col(x, kernel, dilation, padding, stride):
    """The patches of (..., C, H, W) as columns: (..., C * taps, positions)."""
    x = mx.pad(x, [*[(0, 0)] * (x.ndim - 2), *((p, p) for p in padding)])
    height, width = x.shape[-2:]
    rows = (height - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    columns = (width - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    lead = x.shape[:-2]
    planes = math.prod(lead)
    patches = mx.as_strided(
        x,
        (planes, *kernel, rows, columns),
        (height * width, dilation[0] * width, dilation[1], stride[0] * width, stride[1]),
    )
    return patches.reshape(*lead[:-1], lead[-1] * kernel[0] * kernel[1], rows * columns)


def col2im(x, sizes, kernel, dilation, padding, stride):
    """The sum of patches (..., C * taps, positions) at their places in an image (..., C, H, W)."""
    height, width = (n + 2 * p for n, p in zip(sizes, padding, strict=True))
    rows = (height - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    columns = (width - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    lead = (*x.shape[:-2], x.shape[-2] // (kernel[0] * kernel[1]))
    patches = x.reshape(-1, *kernel, rows, columns)
    image = mx.zeros((patches.shape[0], height, width), dtype=x.dtype)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            down = slice(top, top + (rows - 1) * stride[0] + 1, stride[0])
            across = slice(left, left + (columns - 1) * stride[1] + 1, stride[1])
            image = image.at[:, down, across].add(patches[:, i, j])
    image = image[:, padding[0] : height - padding[0], padding[1] : width - padding[1]]
    return image.reshape(*lead, *sizes)
