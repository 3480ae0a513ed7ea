"""Complex numbers from their parts."""

from __future__ import annotations

import math

import mlx.core as mx


def complex_from_parts(real: mx.array, imaginary: mx.array) -> mx.array:
    """``real + i * imaginary``, infinities and signed zeros kept: their memory read as complex numbers."""
    parts = mx.stack(mx.broadcast_arrays(real.astype(mx.float32), imaginary.astype(mx.float32)), axis=-1)
    return parts.view(mx.complex64).squeeze(-1)


def polar(radius: mx.array, angle: mx.array) -> mx.array:
    """``radius * exp(i * angle)``."""
    return complex_from_parts(radius * mx.cos(angle), radius * mx.sin(angle))


def angle(x: mx.array) -> mx.array:
    """The angle in the complex plane; of real numbers 0 or pi."""
    if x.dtype == mx.complex64:
        return mx.arctan2(mx.imag(x), mx.real(x))
    result = mx.where(x < 0, math.pi, 0.0)
    return mx.where(mx.isnan(x), mx.nan, result)
