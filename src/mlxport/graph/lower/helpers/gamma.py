"""The gamma function's logarithm, derivatives and integrals, and the zeta function, good to float32."""

from __future__ import annotations

import math

import mlx.core as mx


def lgamma(x: mx.array) -> mx.array:
    """``log(|gamma(x)|)``: Stirling's series (DLMF 5.11.1) from 8 on, reached by recurrence; reflection below 0.5."""
    reflected = x < 0.5
    y = mx.where(reflected, 1 - x, x)
    small = y < 8
    product = mx.where(small, y, 1.0)
    for step in range(1, 8):
        product = product * mx.where(small, y + step, 1.0)
    z = mx.where(small, y + 8, y)
    series = (1 / 12 - (1 / 360 - 1 / (1260 * z * z)) / (z * z)) / z
    result = (z - 0.5) * (mx.log(z) - 1) + (0.5 * math.log(2 * math.pi) - 0.5) + series - mx.log(product)
    # sin(pi x) by the distance to the nearest integer, which is exact. At the poles it is 0 and the result infinite.
    sine = mx.abs(mx.sin(math.pi * (x - mx.round(x))))
    result = mx.where(reflected, math.log(math.pi) - mx.log(sine) - result, result)
    return mx.where(mx.isinf(x), mx.inf, result)


def digamma(x: mx.array) -> mx.array:
    """The derivative of ``lgamma``: asymptotic series (DLMF 5.11.2) from 10 on, recurrence, reflection below 0."""
    y = mx.where(x < 0, 1 - x, x)
    result = mx.zeros_like(y)
    for _ in range(10):
        small = y < 10
        result = result - mx.where(small, 1 / y, 0)
        y = mx.where(small, y + 1, y)
    z = 1 / (y * y)
    series = z * (1 / 12 - z * (1 / 120 - z * (1 / 252 - z / 240)))
    result = result + mx.log(y) - 0.5 / y - series
    fraction = x - mx.round(x)  # exact, and the tangent has the period pi
    result = mx.where(x < 0, result - math.pi / mx.tan(math.pi * fraction), result)
    result = mx.where((x < 0) & (fraction == 0), mx.nan, result)
    return mx.where(x == 0, -1 / x, result)  # the sign of the zero tells the side of the pole


def trigamma(x: mx.array) -> mx.array:
    """The second derivative of ``lgamma``: asymptotic series, recurrence, reflection below 0.5."""
    reflected = x < 0.5
    y = mx.where(reflected, 1 - x, x)
    result = mx.zeros_like(y)
    for _ in range(6):
        result = result + 1 / (y * y)
        y = y + 1
    z = 1 / (y * y)
    result = result + (1 + 1 / (2 * y) + z * (1 / 6 - z * (1 / 30 - z / 42))) / y
    sine = mx.sin(math.pi * (x - mx.round(x)))
    return mx.where(reflected, math.pi**2 / (sine * sine) - result, result)


def polygamma(n: int, x: mx.array) -> mx.array:
    """The ``n``-th derivative of ``digamma``."""
    if n == 0:
        return digamma(x)
    if n == 1:
        return trigamma(x)
    return (-1) ** (n + 1) * math.factorial(n) * zeta(mx.array(n + 1.0), x)


def hurwitz(s: mx.array, q: mx.array) -> mx.array:
    """The Hurwitz zeta function for ``q > 0``: Euler-Maclaurin summation after nine terms (DLMF 25.11.5)."""
    total = mx.zeros_like(s * q)
    for k in range(9):
        total = total + mx.power(q + k, -s)
    w = q + 9
    term = mx.power(w, -s)
    total = total + term * w / (s - 1) + 0.5 * term
    # B(2j) / (2j)!, with the rising factorial of s in the term.
    term = term * s / w
    for j, number in enumerate((1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160)):
        total = total + number * term
        term = term * (s + 2 * j + 1) * (s + 2 * j + 2) / (w * w)
    return total


def zeta(s: mx.array, q: mx.array) -> mx.array:
    """The Hurwitz zeta function; for ``q < 0``, where ``s`` must be whole, its sum is split at the pole."""
    whole = mx.floor(s) == s
    below = mx.floor(q)
    negative = (q < 0) & whole & (below != q)
    sign = mx.where(s % 2 == 0, 1.0, -1.0)
    right = hurwitz(s, mx.where(negative, q - below, mx.where(q > 0, q, 1.0)))
    left = hurwitz(s, mx.where(negative, below + 1 - q, 1.0)) - hurwitz(s, mx.where(negative, 1 - q, 1.0))
    result = mx.where(negative, right + sign * left, right)
    result = mx.where((q <= 0) & ~negative, mx.where(below == q, mx.inf, mx.nan), result)
    result = mx.where(s == 1, mx.inf, mx.where(s < 1, mx.nan, result))
    return mx.where(mx.isnan(s) | mx.isnan(q), mx.nan, result)


def igamma(a: mx.array, x: mx.array) -> mx.array:
    """The regularized lower incomplete gamma function, to an absolute error of about 1e-6."""
    return incomplete_gamma(a, x, True)


def igammac(a: mx.array, x: mx.array) -> mx.array:
    """The regularized upper incomplete gamma function, to an absolute error of about 1e-6."""
    return incomplete_gamma(a, x, False)


def incomplete_gamma(a: mx.array, x: mx.array, lower: bool) -> mx.array:
    """Power series, continued fraction or Temme's expansion (DLMF 8.11.4, 8.9.2, 8.12.3), whichever converges."""
    inside = (a > 0) & (x > 0) & (a < mx.inf) & (x < mx.inf)
    b, y = mx.where(inside, a, 1.0), mx.where(inside, x, 1.0)
    uniform = (b > 20) & (mx.abs(y - b) < 0.3 * b)
    series = (y <= b) | (y < 1.5)
    # The other methods are evaluated everywhere too: keep them where they converge.
    low = incomplete_gamma_series(mx.where(uniform, 1.0, b), mx.where(uniform | ~series, 1.0, y))
    high = incomplete_gamma_fraction(mx.where(uniform, 1.0, b), mx.where(uniform | series, 2.0, y))
    high = mx.where(series, 1 - low, high)
    high = mx.where(uniform, incomplete_gamma_uniform(mx.where(uniform, b, 30.0), mx.where(uniform, y, 30.0)), high)
    low = mx.where(series & ~uniform, low, 1 - high)
    # At the edges of the domain: 0 before the step at x = a, 1 after it.
    edge = mx.where((a == 0) & (x > 0) | mx.isinf(x), 1.0, 0.0)
    undefined = (a < 0) | (x < 0) | mx.isnan(a) | mx.isnan(x) | (a == 0) & (x == 0) | mx.isinf(a) & mx.isinf(x)
    result = mx.where(inside, low, edge) if lower else mx.where(inside, high, 1 - edge)
    return mx.where(undefined, mx.nan, result)


def incomplete_gamma_series(a: mx.array, x: mx.array) -> mx.array:
    """The lower function by its power series, for ``x`` up to about ``a``."""
    term, total = mx.ones_like(x), mx.ones_like(x)
    for n in range(1, 80):
        term = term * x / (a + n)
        total = total + term
    return total * mx.exp(a * mx.log(x) - x - lgamma(a + 1))


def incomplete_gamma_fraction(a: mx.array, x: mx.array) -> mx.array:
    """The upper function by its continued fraction (modified Lentz), for ``x`` above ``a``."""
    b = x + 1 - a
    c, d = mx.full(b.shape, 1e30), 1 / b
    result = d
    for n in range(1, 60):
        factor = n * (a - n)
        b = b + 2
        d = 1 / (factor * d + b)
        c = b + factor / c
        result = result * d * c
    return result * mx.exp(a * mx.log(x) - x - lgamma(a))


def incomplete_gamma_uniform(a: mx.array, x: mx.array) -> mx.array:
    """The upper function near ``x = a`` for large ``a``: Temme's uniform expansion."""
    coefficients = (
        (-1 / 3, 1 / 12, -2 / 135, 1 / 864, 1 / 2835, -139 / 777600, 1 / 25515, -571 / 261273600),
        (-1 / 540, -1 / 288, 1 / 378, -77 / 77760, 1 / 4860, -4.01877572e-7, -1.80985503e-5, 7.64916092e-6),
        (4.13359788e-3, -2.68132716e-3, 7.71604938e-4, 2.00938786e-6, -1.07366532e-4, 5.29234883e-5),
        (6.49434156e-4, 2.29472094e-4, -4.69189494e-4, 2.67720632e-4),
    )
    sigma = (x - a) / a
    half = sigma - mx.log1p(sigma)  # eta squared, halved
    # Cancels for small sigma: its series there.
    tail = sigma * (1 / 3 - sigma * (1 / 4 - sigma * (1 / 5 - sigma / 6)))
    half = mx.where(mx.abs(sigma) < 0.05, sigma * sigma * (0.5 - tail), half)
    eta = mx.sign(sigma) * mx.sqrt(2 * half)
    total = mx.zeros_like(a)
    for row in reversed(coefficients):
        value = mx.zeros_like(a)
        for number in reversed(row):
            value = value * eta + number
        total = total / a + value
    below = 0.5 * (1 - mx.erf(eta * mx.sqrt(a / 2)))
    return below + mx.exp(-a * half) * total / mx.sqrt(2 * math.pi * a)
