"""Special functions: gamma, error, Bessel and Airy functions, orthogonal polynomials.

All are computed in float32 by published approximations (see the helpers).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import bessel, errorfunction, gamma, polynomials
from mlxport.graph.lower.ops.common import accurate
from mlxport.graph.lower.registry import call, call_host, op

# Functions of one real argument, with the names that torch gives them.
UNARY: dict[str, Callable[..., Any]] = {
    "digamma": gamma.digamma,
    "erfc": errorfunction.erfc,
    "i0": bessel.i0,
    "lgamma": gamma.lgamma,
    "special_airy_ai": bessel.airy_ai,
    "special_bessel_j0": bessel.j0,
    "special_bessel_j1": bessel.j1,
    "special_bessel_y0": bessel.y0,
    "special_bessel_y1": bessel.y1,
    "special_erfcx": errorfunction.erfcx,
    "special_i0e": bessel.i0e,
    "special_i1": bessel.i1,
    "special_i1e": bessel.i1e,
    "special_log_ndtr": errorfunction.log_ndtr,
    "special_modified_bessel_i0": bessel.i0,
    "special_modified_bessel_i1": bessel.i1,
    "special_modified_bessel_k0": bessel.k0,
    "special_modified_bessel_k1": bessel.k1,
    "special_ndtr": errorfunction.ndtr,
    "special_ndtri": errorfunction.ndtri,
    "special_scaled_modified_bessel_k0": bessel.scaled_k0,
    "special_scaled_modified_bessel_k1": bessel.scaled_k1,
    "special_spherical_bessel_j0": bessel.spherical_j0,
}
CHEBYSHEV = ("t", "u", "v", "w")
POLYNOMIALS: dict[str, Callable[..., Any]] = {
    "hermite_polynomial_h": polynomials.hermite_polynomial_h,
    "hermite_polynomial_he": polynomials.hermite_polynomial_he,
    "laguerre_polynomial_l": polynomials.laguerre_polynomial_l,
    "legendre_polynomial_p": polynomials.legendre_polynomial_p,
}


def _register_unary(function: str) -> None:
    @op(f"aten.{function}.default")
    def unary(**argument: Expr) -> Expr:  # torch calls it self or x
        (x,) = argument.values()
        return call(UNARY[function], accurate(x))


def _number(x: Any) -> Expr:
    """An argument that may be a Python number, as an array of float32."""
    return accurate(x) if isinstance(x, Expr) else mx.array(float(x))


def _register_chebyshev(kind: str, shifted: bool) -> None:
    key = f"aten.special_{'shifted_' if shifted else ''}chebyshev_polynomial_{kind}"

    @op(f"{key}.default", f"{key}.x_scalar", f"{key}.n_scalar")
    def chebyshev(x: Any, n: Any) -> Expr:
        x = _number(x)
        return call(polynomials.chebyshev_polynomial, 2 * x - 1 if shifted else x, _number(n), kind)


def _register_polynomial(name: str) -> None:
    key = f"aten.special_{name}"

    @op(f"{key}.default", f"{key}.x_scalar", f"{key}.n_scalar")
    def polynomial(x: Any, n: Any) -> Expr:
        x, n = _number(x), _number(n)
        return call_host(POLYNOMIALS[name], (x + n).value, x, n)


for _function in UNARY:
    _register_unary(_function)
for _kind in CHEBYSHEV:
    _register_chebyshev(_kind, shifted=False)
    _register_chebyshev(_kind, shifted=True)
for _function in POLYNOMIALS:
    _register_polynomial(_function)


@op("aten.erfinv.default")
def erfinv(self: Expr) -> Expr:
    """The inverse of the error function."""
    return mx.erfinv(accurate(self))


@op("aten.polygamma.default", "aten.special_polygamma.default")
def polygamma(n: int, self: Expr) -> Expr:
    """The ``n``-th derivative of the digamma function."""
    x = accurate(self)
    return call(gamma.digamma, x) if n == 0 else call(gamma.polygamma, n, x)


@op("aten.special_zeta.default", "aten.special_zeta.other_scalar", "aten.special_zeta.self_scalar")
def zeta(self: Any, other: Any) -> Expr:
    """The Hurwitz zeta function."""
    return call(gamma.zeta, _number(self), _number(other))


@op("aten.igamma.default", "aten.special_gammainc.default")
def igamma(self: Expr, other: Expr) -> Expr:
    """The regularized lower incomplete gamma function, to an absolute error of about 1e-6."""
    return call(gamma.igamma, accurate(self), accurate(other))


@op("aten.igammac.default", "aten.special_gammaincc.default")
def igammac(self: Expr, other: Expr) -> Expr:
    """The regularized upper incomplete gamma function, to an absolute error of about 1e-6."""
    return call(gamma.igammac, accurate(self), accurate(other))
