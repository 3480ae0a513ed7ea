"""What codecs of sound have beside convolutions."""

from __future__ import annotations

import mlx.core as mx


def pad_to_strides(x, kernel, stride=1, causal=True, mode="constant"):
    """Pad x (batch, length, channels) so that every stride that begins in it is a step of a convolution."""
    length = x.shape[1]
    after = 0 if causal else (kernel - stride) // 2
    before, after = kernel - stride - after, after + -length % stride
    short = max(before, after) + 1 - length
    if mode == "reflect" and short > 0:  # what is too short to be reflected ends in zeros meanwhile
        x = mx.pad(x, [(0, 0), (0, short), (0, 0)])
    return mx.pad(x, [(0, 0), (before, after), (0, 0)], mode=mode)[:, : before + length + after]


def nearest_row(x, codebook):
    """The row of a codebook that each vector of x (..., width) is nearest to."""
    products = 2 * x @ codebook.T
    distances = mx.square(x).sum(axis=-1, keepdims=True) - products + mx.square(codebook).sum(axis=-1)
    return distances.argmin(axis=-1).astype(mx.int64)
