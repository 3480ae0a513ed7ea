"""The error function's complements, inverses and the normal distribution, good to float32."""

from __future__ import annotations

import math

import mlx.core as mx


def erfcx_positive(x: mx.array) -> mx.array:
    """``exp(x * x) * erfc(x)`` for ``x >= 0``.

    A polynomial for ``(1 + 2 x) exp(x * x) erfc(x)`` after M. M. Shepherd and J. G. Laframboise, Math. Comp. 36 (1981).
    """
    coefficients = (
        1.27697839, -0.092763082, -0.166031096, 0.16403584, -0.0542119585, -0.0079427217,
        0.00868915966, 0.00104314458, -0.00139570695, -0.000183654437, 0.000160803582,
    )  # fmt: skip
    t = 1 - 4 / (x + 2)
    result = mx.zeros_like(x)
    for number in reversed(coefficients):
        result = result * t + number
    return result / (1 + 2 * x)


def erfcx(x: mx.array) -> mx.array:
    """``exp(x * x) * erfc(x)``."""
    positive = erfcx_positive(mx.abs(x))
    return mx.where(x < 0, 2 * mx.exp(x * x) - positive, positive)


def erfc(x: mx.array) -> mx.array:
    """``1 - erf(x)``, accurate where it is small."""
    large = mx.maximum(x, 0.5)
    # Split x so that the square of the first part is exact: exp(-x * x) keeps its digits.
    head = (large.view(mx.int32) & ~0xFFF).view(mx.float32)
    tail = mx.exp(-head * head) * mx.exp((head - large) * (head + large)) * erfcx_positive(large)
    # Beyond 10.1 float32 has only 0.
    return mx.where(x > 10.1, 0.0, mx.where(x < 0.5, 1 - mx.erf(x), tail))


def ndtr(x: mx.array) -> mx.array:
    """The normal distribution function."""
    return 0.5 * erfc(-x * math.sqrt(0.5))


def log_ndtr(x: mx.array) -> mx.array:
    """The logarithm of the normal distribution function, for arguments far below 0 too."""
    t = x * math.sqrt(0.5)
    below = mx.minimum(t, -0.5)
    tail = mx.log(0.5 * erfcx_positive(-below)) - below * below
    return mx.where(x < -1, tail, mx.log1p(-0.5 * erfc(mx.maximum(t, -1.0))))


def ndtri(p: mx.array) -> mx.array:
    """The inverse of the normal distribution function: AS 241 (PPND7), Wichura, Applied Statistics 37 (1988)."""
    q = p - 0.5
    r = 0.180625 - q * q
    top = ((59.10937472 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179
    bottom = ((67.1875636 * r + 78.757757664) * r + 17.895169469) * r + 1
    central = q * top / bottom
    r = mx.sqrt(-mx.log(mx.minimum(p, 1 - p)))
    s = r - 1.6
    top = ((0.17023821103 * s + 1.3067284816) * s + 2.75681539) * s + 1.4234372777
    middle = top / ((0.12021132975 * s + 0.7370016425) * s + 1)
    s = r - 5
    top = ((0.017337203997 * s + 0.42868294337) * s + 3.081226386) * s + 6.657905115
    far = top / ((0.012258202635 * s + 0.24197894225) * s + 1)
    tail = mx.sign(q) * mx.where(r <= 5, middle, far)
    result = mx.where(mx.abs(q) <= 0.425, central, tail)
    return mx.where(p == 0, -mx.inf, mx.where(p == 1, mx.inf, result))
