"""Arithmetic of integers that MLX has no function for."""

from __future__ import annotations

import mlx.core as mx


def left_shift(x: mx.array, bits: mx.array) -> mx.array:
    """``x << bits``; 0 where ``bits`` is negative or as large as the type."""
    width = 8 * x.itemsize
    inside = (bits >= 0) & (bits < width)
    return mx.where(inside, x << mx.where(inside, bits, 0), 0)


def right_shift(x: mx.array, bits: mx.array) -> mx.array:
    """``x >> bits``; 0 or -1 where ``bits`` is negative or as large as the type."""
    width = 8 * x.itemsize
    inside = (bits >= 0) & (bits < width)
    return x >> mx.where(inside, bits, width - 1)


def gcd(a: mx.array, b: mx.array) -> mx.array:
    """The greatest common divisor: Euclid's algorithm, in as many steps as the type can need (Lamé)."""
    a, b = mx.abs(a), mx.abs(b)
    for _ in range({1: 13, 2: 24, 4: 48, 8: 93}[max(a.itemsize, b.itemsize)]):
        a, b = mx.where(b == 0, a, b), mx.where(b == 0, 0, a % mx.where(b == 0, 1, b))
    return a


def lcm(a: mx.array, b: mx.array) -> mx.array:
    """The least common multiple; 0 where one is 0."""
    divisor = gcd(a, b)
    return mx.abs(a // mx.where(divisor == 0, 1, divisor) * b)
