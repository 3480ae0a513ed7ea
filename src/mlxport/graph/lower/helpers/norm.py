"""Normalisations over channels-last arrays that MLX has as layers only."""

from __future__ import annotations

import mlx.core as mx


def group_norm(x, groups, eps):
    """Normalise each group of channels of (N, ..., C) over all positions, without scale and bias."""
    batch, channels = x.shape[0], x.shape[-1]
    y = x.reshape(batch, -1, groups, channels // groups).swapaxes(1, 2)  # (N, groups, positions, channels of a group)
    y = mx.fast.layer_norm(y.reshape(batch, groups, -1), None, None, eps)
    return y.reshape(batch, groups, -1, channels // groups).swapaxes(1, 2).reshape(x.shape)


def instance_norm(x, eps):
    """Normalise each channel of (N, ..., C) over all positions."""
    axes = list(range(1, x.ndim - 1))
    mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return (x - mean) * mx.rsqrt(variance + eps)
