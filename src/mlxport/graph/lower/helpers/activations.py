"""Activations that MLX does not have in torch's form."""

from __future__ import annotations

import mlx.core as mx


def softplus_with_threshold(x, beta, threshold):
    """log(1 + exp(beta * x)) / beta, and x itself where beta * x exceeds the threshold."""
    scaled = beta * x
    return mx.where(scaled > threshold, x, mx.logaddexp(scaled, 0) / beta)
