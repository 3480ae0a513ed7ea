"""Windows of signal processing."""

from __future__ import annotations

import math

import mlx.core as mx

from mlxport.graph.lower.helpers.bessel import i0


def cosine_window(length, coefficients, periodic=True):
    """Sum of (-1)**k * coefficients[k] * cos(k * angle) over one period; the last value closes it if not periodic."""
    if length <= 1:
        return mx.ones(length)
    angle = mx.arange(length) * (2 * math.pi / (length if periodic else length - 1))
    return sum((-1) ** k * factor * mx.cos(k * angle) for k, factor in enumerate(coefficients))


def bartlett_window(length, periodic=True):
    """A triangle from 0 to 1 and back."""
    if length <= 1:
        return mx.ones(length)
    return 1 - mx.abs(mx.arange(length) * (2 / (length if periodic else length - 1)) - 1)


def kaiser_window(length, beta=12.0, periodic=True):
    """The Kaiser window with shape ``beta``."""
    if length <= 1:
        return mx.ones(length)
    place = mx.arange(length) * (2 / (length if periodic else length - 1)) - 1
    root = beta * mx.sqrt(mx.maximum(1 - mx.square(place), 0))
    return i0(root) / i0(mx.array(float(beta)))
