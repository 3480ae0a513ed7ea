"""Arithmetic that MLX has no single function for."""

from __future__ import annotations

import math

import mlx.core as mx


def trunc_divide(a: mx.array, b: mx.array | int) -> mx.array:
    """Integer division that rounds toward zero."""
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a))


def floor_divide(a: mx.array, b: mx.array | float) -> mx.array:
    """Floored division of floats by way of the remainder: ``floor(a / b)`` is off where ``a / b`` is rounded up."""
    remainder = fmod(a, b)
    quotient = mx.round((a - remainder) / b) - ((remainder != 0) & ((remainder < 0) != (b < 0)))
    return mx.where(b == 0, a / b, quotient)


def fmod(a: mx.array, b: mx.array | float) -> mx.array:
    """The remainder of division toward zero: its sign is that of ``a``."""
    remainder = mx.abs(a) % (abs(b) if isinstance(b, int | float) else mx.abs(b))
    return mx.where(a < 0, -remainder, remainder)


def integer_power(base: mx.array, exponent: mx.array) -> mx.array:
    """``base ** exponent`` of integers: negative exponents give 0 unless the base is 1 or -1."""
    odd = exponent % 2 == 1
    inverse = mx.where(base == 1, 1, mx.where(base == -1, mx.where(odd, -1, 1), 0))
    return mx.where(exponent < 0, inverse, base ** mx.maximum(exponent, 0))


def fmax(a: mx.array, b: mx.array) -> mx.array:
    """The larger of two; the other one where one is NaN."""
    return mx.where(mx.isnan(a), b, mx.where(mx.isnan(b), a, mx.maximum(a, b)))


def fmin(a: mx.array, b: mx.array) -> mx.array:
    """The smaller of two; the other one where one is NaN."""
    return mx.where(mx.isnan(a), b, mx.where(mx.isnan(b), a, mx.minimum(a, b)))


def hypot(a: mx.array, b: mx.array) -> mx.array:
    """``sqrt(a * a + b * b)`` without overflow."""
    large, small = mx.maximum(mx.abs(a), mx.abs(b)), mx.minimum(mx.abs(a), mx.abs(b))
    ratio = small / mx.where(large == 0, 1, large)
    return mx.where(mx.isinf(large), large, large * mx.sqrt(1 + ratio * ratio))


def signbit(x: mx.array) -> mx.array:
    """Whether the sign bit is set: true for -0.0."""
    integers = {2: mx.int16, 4: mx.int32}
    return x.view(integers[x.itemsize]) < 0 if mx.issubdtype(x.dtype, mx.floating) else x < 0


def copysign(x: mx.array, sign: mx.array) -> mx.array:
    """The magnitude of ``x`` with the sign of ``sign``."""
    magnitude = mx.abs(x if mx.issubdtype(x.dtype, mx.floating) else x.astype(mx.float32))
    return mx.where(signbit(sign), -magnitude, magnitude)


def logaddexp2(a: mx.array, b: mx.array) -> mx.array:
    """``log2(2 ** a + 2 ** b)``."""
    large = mx.maximum(a, b)
    # Equal infinities: their difference is no number.
    distance = mx.where(a == b, 0.0, mx.abs(a - b))
    return large + mx.log1p(mx.power(2.0, -distance)) / math.log(2)


def heaviside(x: mx.array, at_zero: mx.array) -> mx.array:
    """The step function with the value ``at_zero`` at 0; 0 for NaN."""
    return mx.where(x == 0, at_zero, x > 0)


def frexp(x: mx.array) -> tuple[mx.array, mx.array]:
    """Mantissa in [0.5, 1) and exponent, from the bits of float32."""
    tiny = mx.abs(x) < 2.0**-126  # subnormal: scaled up first
    bits = mx.where(tiny, x * 2.0**24, x).view(mx.int32)
    exponent = ((bits >> 23) & 0xFF) - 126 - mx.where(tiny, 24, 0)
    mantissa = ((bits & ~0x7F800000) | 0x3F000000).view(mx.float32)
    special = (x == 0) | ~mx.isfinite(x)
    return mx.where(special, x, mantissa), mx.where(special, 0, exponent)


def nextafter(x: mx.array, towards: mx.array) -> mx.array:
    """The next float32 after ``x`` in the direction of ``towards``."""
    bits = x.view(mx.int32)
    step = mx.where((towards > x) == (x > 0), 1, -1)
    moved = (bits + step).view(mx.float32)
    smallest = mx.where(towards > 0, mx.array(1, mx.int32), mx.array(-(2**31) + 1, mx.int32)).view(mx.float32)
    result = mx.where(x == 0, smallest, moved)
    result = mx.where(x == towards, towards, result)
    return mx.where(mx.isnan(x) | mx.isnan(towards), mx.nan, result)
