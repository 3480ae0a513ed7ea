"""Special functions: the approximations against torch in float64, and the ops that lead to them."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from conformance import run_calls

from mlxport.graph.lower.helpers import bessel, errorfunction, gamma, polynomials

LIMITS = [0.0, -0.0, np.inf, -np.inf, np.nan]
LINE = np.concatenate([np.linspace(-30, 30, 6001), np.logspace(-6, 30, 300), LIMITS])
WAVE = np.concatenate([np.linspace(-50, 50, 10001), np.logspace(-6, 3, 300), LIMITS])
UNIT = np.concatenate([np.linspace(0, 1, 2001), np.logspace(-37, -1, 300), [-1, 2, np.nan]])

# name: approximation, torch's function, arguments, relative and absolute error
FUNCTIONS = {
    "lgamma": (gamma.lgamma, torch.lgamma, LINE, 1e-6, 6e-6),
    "digamma": (gamma.digamma, torch.digamma, LINE, 1e-5, 2e-6),
    "erfcx": (errorfunction.erfcx, torch.special.erfcx, LINE, 1e-5, 0),
    "erfc": (errorfunction.erfc, torch.erfc, LINE, 1e-5, 1e-37),
    "ndtr": (errorfunction.ndtr, lambda x: torch.erfc(-x / 2**0.5) / 2, LINE, 2e-5, 1e-37),
    "log_ndtr": (errorfunction.log_ndtr, torch.special.log_ndtr, LINE, 2e-5, 1e-36),
    "ndtri": (errorfunction.ndtri, torch.special.ndtri, UNIT, 1e-6, 1e-7),
    "i0": (bessel.i0, torch.special.i0, WAVE, 2e-5, 0),
    "i0e": (bessel.i0e, torch.special.i0e, WAVE[:-5], 1e-6, 0),
    "i1": (bessel.i1, torch.special.i1, WAVE, 2e-5, 1e-7),
    "i1e": (bessel.i1e, torch.special.i1e, WAVE[:-5], 1e-6, 1e-7),
    "j0": (bessel.j0, torch.special.bessel_j0, WAVE[:-5], 0, 2e-6),
    "j1": (bessel.j1, torch.special.bessel_j1, WAVE[:-5], 0, 2e-6),
    "y0": (bessel.y0, torch.special.bessel_y0, WAVE[:-5], 1e-6, 2e-6),
    "y1": (bessel.y1, torch.special.bessel_y1, WAVE[:-5], 1e-6, 2e-6),
    "k0": (bessel.k0, torch.special.modified_bessel_k0, WAVE[:-5], 1e-5, 1e-37),
    "k1": (bessel.k1, torch.special.modified_bessel_k1, WAVE[:-5], 1e-5, 1e-37),
    "scaled k0": (bessel.scaled_k0, torch.special.scaled_modified_bessel_k0, WAVE[:-5], 1e-6, 0),
    "scaled k1": (bessel.scaled_k1, torch.special.scaled_modified_bessel_k1, WAVE[:-5], 1e-6, 0),
    "airy": (bessel.airy_ai, torch.special.airy_ai, np.append(WAVE[:10001], LIMITS), 1e-5, 1e-5),
    "spherical j0": (bessel.spherical_j0, torch.special.spherical_bessel_j0, WAVE, 1e-6, 1e-7),
}


def both(ours, theirs, *arguments):
    """Our values and torch's of float64, both as float32."""
    arrays = [np.asarray(argument, np.float32) for argument in arguments]
    wanted = theirs(*(torch.tensor(array.astype(np.float64)) for array in arrays))
    with np.errstate(over="ignore"):
        return np.array(ours(*map(mx.array, arrays))), wanted.numpy().astype(np.float32)


@pytest.mark.parametrize(("ours", "theirs", "x", "rtol", "atol"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_approximation(ours, theirs, x, rtol, atol):
    got, wanted = both(ours, theirs, x)
    np.testing.assert_allclose(got, wanted, rtol, atol)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 6])
def test_polygamma(n):
    x = np.concatenate([np.linspace(0.05, 30, 501), np.linspace(-9.99, -0.01, 300), [0.0]])
    got, wanted = both(lambda x: gamma.polygamma(n, x), lambda x: torch.polygamma(n, x), x)
    np.testing.assert_allclose(got, wanted, 2e-5, 2e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(gamma.igamma, torch.special.gammainc), (gamma.igammac, torch.special.gammaincc)]
)
def test_incomplete_gamma(ours, theirs):
    a = np.concatenate([[0, 0.01], np.linspace(0.1, 3, 30), np.linspace(4, 60, 57), [150, 199, 500, 2000]])
    x = np.concatenate([[0, 0.01, np.inf], np.linspace(0.1, 3, 30), np.linspace(4, 90, 87), [140, 200, 530, 2010]])
    got, wanted = both(ours, theirs, *np.meshgrid(a, x))
    np.testing.assert_allclose(got, wanted, 0, 6e-6)


def test_zeta():
    s, q = np.meshgrid(np.concatenate([[0.5, 1, 1.1, 2.5], np.arange(2, 12)]), np.append(np.arange(1, 80) / 8, [0, -3]))
    got, wanted = both(gamma.zeta, torch.special.zeta, s, q)
    np.testing.assert_allclose(got, wanted, 2e-6)


@pytest.mark.parametrize("kind", "tuvw")
def test_chebyshev(kind):
    theirs = getattr(torch.special, f"chebyshev_polynomial_{kind}")
    got, wanted = both(
        lambda x, n: polynomials.chebyshev_polynomial(x, n, kind),
        theirs,
        *np.meshgrid(np.linspace(-2, 2, 81), np.arange(-1, 10)),
    )
    np.testing.assert_allclose(got, wanted, 1e-5, 2e-5)


@pytest.mark.parametrize(
    "name", ["hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p"]
)
def test_polynomial(name):
    ours, theirs = getattr(polynomials, name), getattr(torch.special, name)
    got, wanted = both(ours, theirs, *np.meshgrid(np.linspace(-2, 2, 41), np.arange(-1, 8)))
    np.testing.assert_allclose(got, wanted, 1e-5, 1e-4)


X = torch.tensor([0.3, 0.5, 0.9])
N = torch.tensor([1.0, 2.0, 4.0])


CASES = [
    lambda x: (x.lgamma(), x.digamma(), torch.polygamma(2, x), torch.mvlgamma(x + 2, 3), x.erfinv()),
    lambda x: (torch.special.zeta(2.0, x), torch.special.zeta(x + 1, 2.0), torch.special.gammainc(x, x + 1)),
    lambda x: (torch.special.i1e(x), torch.special.bessel_y0(x), torch.special.scaled_modified_bessel_k1(x)),
    lambda x: (torch.special.log_ndtr(x), torch.special.ndtri(x), torch.special.erfcx(x), torch.erfc(x)),
    lambda x: (torch.special.hermite_polynomial_h(x, 3), torch.special.legendre_polynomial_p(0.5, 10 * x)),
    lambda x: torch.special.shifted_chebyshev_polynomial_u(x, 5),
    lambda x: torch.special.laguerre_polynomial_l(x, N),
    lambda x: (x.bfloat16().lgamma(), (10 * x).int().lgamma(), (x > 0.4).erfc()),
]


def test_ops():
    outcome = run_calls([(function, (X,), {}) for function in CASES])
    assert outcome.status == "pass", outcome.reason
