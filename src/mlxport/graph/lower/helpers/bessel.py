"""Bessel and Airy functions of real arguments, good to about 1e-6.

Polynomials from Abramowitz and Stegun, Handbook of Mathematical Functions (1964), sections 9.4 and 9.8.
"""

from __future__ import annotations

import math

import mlx.core as mx


def polynomial(x: mx.array, *coefficients: float) -> mx.array:
    """The polynomial with the given coefficients, the constant first."""
    result = mx.full(x.shape, coefficients[-1])
    for number in reversed(coefficients[:-1]):
        result = result * x + number
    return result


def i0_parts(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Where |x| is small, ``i0(x)`` there, and ``exp(-|x|) i0(x)`` elsewhere."""
    y = mx.abs(x)
    t = mx.square(mx.minimum(y, 3.75) / 3.75)
    small = polynomial(t, 1.0, 3.5156229, 3.0899424, 1.2067492, 0.2659732, 0.0360768, 0.0045813)
    large = polynomial(
        3.75 / mx.maximum(y, 3.75),
        0.39894228, 0.01328592, 0.00225319, -0.00157565, 0.00916281, -0.02057706, 0.02635537, -0.01647633, 0.00392377,
    ) / mx.sqrt(mx.maximum(y, 3.75))  # fmt: skip
    return y < 3.75, small, large


def i1_parts(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Where |x| is small, ``i1(x)`` there, and ``exp(-|x|) i1(x)`` elsewhere."""
    y = mx.abs(x)
    t = mx.square(mx.minimum(y, 3.75) / 3.75)
    small = x * polynomial(t, 0.5, 0.87890594, 0.51498869, 0.15084934, 0.02658733, 0.00301532, 0.00032411)
    large = polynomial(
        3.75 / mx.maximum(y, 3.75),
        0.39894228, -0.03988024, -0.00362018, 0.00163801, -0.01031555, 0.02282967, -0.02895312, 0.01787654, -0.00420059,
    ) / mx.sqrt(mx.maximum(y, 3.75))  # fmt: skip
    return y < 3.75, small, mx.sign(x) * large


def i0(x: mx.array) -> mx.array:
    """The modified Bessel function of the first kind, order 0."""
    near, small, large = i0_parts(x)
    half = mx.exp(mx.abs(x) / 2)  # twice: the exponential alone overflows first
    return mx.where(near, small, half * large * half)


def i0e(x: mx.array) -> mx.array:
    """``exp(-|x|) * i0(x)``."""
    near, small, large = i0_parts(x)
    return mx.where(near, mx.exp(-mx.abs(x)) * small, large)


def i1(x: mx.array) -> mx.array:
    """The modified Bessel function of the first kind, order 1."""
    near, small, large = i1_parts(x)
    half = mx.exp(mx.abs(x) / 2)  # twice: the exponential alone overflows first
    return mx.where(near, small, half * large * half)


def i1e(x: mx.array) -> mx.array:
    """``exp(-|x|) * i1(x)``."""
    near, small, large = i1_parts(x)
    return mx.where(near, mx.exp(-mx.abs(x)) * small, large)


def scaled_k0(x: mx.array) -> mx.array:
    """``exp(x) * k0(x)``."""
    y = mx.minimum(x, 2.0)
    small = -mx.log(y / 2) * i0(y) + polynomial(
        mx.square(y / 2), -0.57721566, 0.4227842, 0.23069756, 0.0348859, 0.00262698, 0.0001075, 0.0000074
    )
    large = polynomial(
        2 / mx.maximum(x, 2.0), 1.25331414, -0.07832358, 0.02189568, -0.01062446, 0.00587872, -0.0025154, 0.00053208
    ) / mx.sqrt(x)
    return mx.where(x <= 2, small * mx.exp(y), large)


def k0(x: mx.array) -> mx.array:
    """The modified Bessel function of the second kind, order 0: infinite at 0, NaN below."""
    return mx.exp(-x) * scaled_k0(x)


def scaled_k1(x: mx.array) -> mx.array:
    """``exp(x) * k1(x)``."""
    y = mx.minimum(x, 2.0)
    small = (
        mx.log(y / 2) * i1(y)
        + polynomial(mx.square(y / 2), 1.0, 0.15443144, -0.67278579, -0.18156897, -0.01919402, -0.00110404, -0.00004686)
        / y
    )
    large = polynomial(
        2 / mx.maximum(x, 2.0), 1.25331414, 0.23498619, -0.0365562, 0.01504268, -0.00780353, 0.00325614, -0.00068245
    ) / mx.sqrt(x)
    result = mx.where(x <= 2, small * mx.exp(y), large)
    return mx.where(x == 0, mx.inf, mx.where(x < 0, mx.nan, result))


def k1(x: mx.array) -> mx.array:
    """The modified Bessel function of the second kind, order 1: infinite at 0, NaN below."""
    return mx.exp(-x) * scaled_k1(x)


def wave0(x: mx.array) -> tuple[mx.array, mx.array]:
    """Amplitude and phase of the functions of order 0 for ``x >= 3``."""
    t = 3 / x
    amplitude = polynomial(
        t, 0.79788456, -0.00000077, -0.0055274, -0.00009512, 0.00137237, -0.00072805, 0.00014476
    ) / mx.sqrt(x)
    phase = polynomial(t, -0.78539816, -0.04166397, -0.00003954, 0.00262573, -0.00054125, -0.00029333, 0.00013558)
    return amplitude, x + phase


def wave1(x: mx.array) -> tuple[mx.array, mx.array]:
    """Amplitude and phase of the functions of order 1 for ``x >= 3``."""
    t = 3 / x
    amplitude = polynomial(
        t, 0.79788456, 0.00000156, 0.01659667, 0.00017105, -0.00249511, 0.00113653, -0.00020033
    ) / mx.sqrt(x)
    phase = polynomial(t, -2.35619449, 0.12499612, 0.0000565, -0.00637879, 0.00074348, 0.00079824, -0.00029166)
    return amplitude, x + phase


def j0(x: mx.array) -> mx.array:
    """The Bessel function of the first kind, order 0."""
    y = mx.abs(x)
    small = polynomial(
        mx.square(mx.minimum(y, 3.0) / 3),
        1.0, -2.2499997, 1.2656208, -0.3163866, 0.0444479, -0.0039444, 0.00021,
    )  # fmt: skip
    amplitude, phase = wave0(mx.maximum(y, 3.0))
    return mx.where(y < 3, small, amplitude * mx.cos(phase))


def j1(x: mx.array) -> mx.array:
    """The Bessel function of the first kind, order 1."""
    y = mx.abs(x)
    small = x * polynomial(
        mx.square(mx.minimum(y, 3.0) / 3),
        0.5, -0.56249985, 0.21093573, -0.03954289, 0.00443319, -0.00031761, 0.00001109,
    )  # fmt: skip
    amplitude, phase = wave1(mx.maximum(y, 3.0))
    return mx.where(y < 3, small, mx.sign(x) * amplitude * mx.cos(phase))


def y0(x: mx.array) -> mx.array:
    """The Bessel function of the second kind, order 0: NaN below 0."""
    small = 2 / math.pi * mx.log(x / 2) * j0(x) + polynomial(
        mx.square(mx.minimum(x, 3.0) / 3),
        0.36746691, 0.60559366, -0.74350384, 0.25300117, -0.04261214, 0.00427916, -0.00024846,
    )  # fmt: skip
    amplitude, phase = wave0(mx.maximum(x, 3.0))
    return mx.where(x < 3, small, amplitude * mx.sin(phase))


def y1(x: mx.array) -> mx.array:
    """The Bessel function of the second kind, order 1: NaN below 0."""
    small = 2 / math.pi * mx.log(x / 2) * j1(x) + polynomial(
        mx.square(mx.minimum(x, 3.0) / 3),
        -0.6366198, 0.2212091, 2.1682709, -1.3164827, 0.3123951, -0.0400976, 0.0027873,
    ) / x  # fmt: skip
    amplitude, phase = wave1(mx.maximum(x, 3.0))
    return mx.where(x == 0, -mx.inf, mx.where(x < 3, small, amplitude * mx.sin(phase)))


def spherical_j0(x: mx.array) -> mx.array:
    """``sin(x) / x``, 1 at 0 and 0 at infinity."""
    return mx.where(x == 0, 1.0, mx.where(mx.isinf(x), 0.0, mx.sin(x) / mx.where(x == 0, 1.0, x)))


def airy_ai(x: mx.array) -> mx.array:
    """The Airy function: Maclaurin's series (DLMF 9.4.1) near 0, asymptotic forms (DLMF 9.7) beyond 2.09."""
    near = mx.clip(x, -2.09, 2.09)
    cube = near * near * near
    f, g = mx.ones_like(x), near
    first, second = f, g
    for k in range(1, 12):
        f, g = f * cube / (3 * k * (3 * k - 1)), g * cube / (3 * k * (3 * k + 1))
        first, second = first + f, second + g
    central = 0.3550280538878172 * first - 0.2588194037928068 * second
    y = mx.maximum(mx.abs(x), 2.09)
    zeta = 2 / 3 * y * mx.sqrt(y)
    z, root = 1 / zeta, mx.sqrt(mx.sqrt(y) * math.pi)
    right = polynomial(
        z, 0.999999999, -0.0694440431, 0.0371114215, -0.0375098426, 0.0520463435, -0.0759374283, 0.0903940721,
        -0.0696065526, 0.0246650421,
    ) * mx.exp(-zeta) / (2 * root)  # fmt: skip
    p = polynomial(
        z, 1.00000001, -1.82558201e-06, -0.0370329833, -0.00215643894, 0.0809247078, -0.137071694, 0.106653621,
        -0.0262709659, -0.00786176611,
    )  # fmt: skip
    q = polynomial(
        z, 3.27139997e-09, 0.0694435175, 4.07231723e-05, -0.0385814629, 0.00215451303, 0.141004163, -0.299864005,
        0.288904821, -0.112817598,
    )  # fmt: skip
    phase = zeta + math.pi / 4
    left = (mx.sin(phase) * p - mx.cos(phase) * q) / root
    result = mx.where(x > 2.09, right, mx.where(x < -2.09, left, central))
    return mx.where(mx.isinf(x), mx.nan, result)
