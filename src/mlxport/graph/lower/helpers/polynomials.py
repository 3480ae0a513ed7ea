"""Orthogonal polynomials whose degree may be an array."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx


def chebyshev_polynomial(x: mx.array, n: mx.array, kind: str) -> mx.array:
    """Chebyshev's polynomials of the kinds t, u, v, w: their closed forms by cosine and cosh (DLMF 18.5)."""
    n = mx.trunc(n)
    sign = mx.where(n % 2 == 0, 1.0, -1.0)  # for x < -1
    angle = mx.arccos(mx.clip(x, -1.0, 1.0))
    beyond = mx.arccosh(mx.maximum(mx.abs(x), 1.0))
    left = x < 0
    if kind == "t":
        inner, outer = mx.cos(n * angle), mx.cosh(n * beyond) * mx.where(left, sign, 1.0)
        edge = mx.where(left, sign, 1.0)
    elif kind == "u":
        inner = mx.sin((n + 1) * angle) / mx.sin(angle)
        outer = mx.sinh((n + 1) * beyond) / mx.sinh(beyond) * mx.where(left, sign, 1.0)
        edge = (n + 1) * mx.where(left, sign, 1.0)
    else:
        odd, even = mx.sinh((n + 0.5) * beyond) / mx.sinh(beyond / 2), mx.cosh((n + 0.5) * beyond) / mx.cosh(beyond / 2)
        # w is v mirrored: v(-x) = (-1)^n w(x).
        mirrored = left if kind == "v" else ~left
        outer = mx.where(mirrored, odd, even) * mx.where(left, sign, 1.0)
        edge = mx.where(mirrored, 2 * n + 1, 1.0) * mx.where(left, sign, 1.0)
        if kind == "v":
            inner = mx.cos((n + 0.5) * angle) / mx.cos(angle / 2)
        else:
            inner = mx.sin((n + 0.5) * angle) / mx.sin(angle / 2)
    result = mx.where(mx.abs(x) < 1, inner, mx.where(mx.abs(x) == 1, edge, outer))
    return mx.where(n < 0, 0.0, mx.where(mx.isnan(x), mx.nan, result))


def recurrence(x: mx.array, n: mx.array, first: mx.array, step: Callable[..., mx.array]) -> mx.array:
    """The polynomial of degree ``n`` from those of degree 0 and 1; the largest degree is read on the host."""
    n = mx.trunc(n)
    before, now = mx.ones_like(first), first
    result = mx.where(n == 0, before, now)
    for k in range(1, int(n.max().item()) if n.size else 0):
        before, now = now, step(k, now, before)
        result = mx.where(n > k, now, result)
    return mx.where(n < 0, 0.0, result)


def hermite_polynomial_h(x: mx.array, n: mx.array) -> mx.array:
    """Hermite's polynomials of the physicists; NaN above degree 128, as in torch."""
    result = recurrence(x, mx.minimum(n, 128), 2 * x, lambda k, now, before: 2 * x * now - 2 * k * before)
    return mx.where(n > 128, mx.nan, result)


def hermite_polynomial_he(x: mx.array, n: mx.array) -> mx.array:
    """Hermite's polynomials of probability theory; NaN above degree 128, as in torch."""
    result = recurrence(x, mx.minimum(n, 128), x, lambda k, now, before: x * now - k * before)
    return mx.where(n > 128, mx.nan, result)


def laguerre_polynomial_l(x: mx.array, n: mx.array) -> mx.array:
    """Laguerre's polynomials."""
    return recurrence(x, n, 1 - x, lambda k, now, before: ((2 * k + 1 - x) * now - k * before) / (k + 1))


def legendre_polynomial_p(x: mx.array, n: mx.array) -> mx.array:
    """Legendre's polynomials."""
    return recurrence(x, n, x, lambda k, now, before: ((2 * k + 1) * x * now - k * before) / (k + 1))
