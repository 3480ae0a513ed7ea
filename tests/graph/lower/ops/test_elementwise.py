"""Elementwise arithmetic, comparison and bits against torch."""

import pytest
import torch
from conformance import compare, run_calls, run_case

F = torch.tensor([-2.5, -1.0, -0.5, -0.0, 0.0, 0.4, 0.5, 1.5, 2.5, 3.0])
G = torch.tensor([1.0, -2.0, 0.75, 3.0, -1.5, 2.0, 0.5, -1.0, 4.0, 0.3])
SPECIAL = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e30, -3.5])
N = torch.tensor([-7, -3, -1, 0, 1, 2, 5, 9])
J = torch.tensor([2, -2, 3, -4, 5, 7, -3, 4])

UNARY = """abs acos asinh atan ceil cos deg2rad erf exp exp2 expm1 floor
    frac log log1p neg reciprocal round rsqrt sgn sigmoid
    sign signbit sqrt square tanh trunc isnan isinf isfinite logical_not nan_to_num""".split()
BINARY = """add sub mul div floor_divide remainder fmod pow maximum minimum fmax fmin atan2 hypot copysign eq lt ge
    logaddexp logaddexp2 heaviside nextafter""".split()
INTEGER = """add mul div floor_divide remainder fmod maximum eq gt bitwise_and bitwise_or bitwise_xor gcd lcm
    logical_xor""".split()


def check(function, *args, **kwargs):
    outcome = run_case(function, args, kwargs)
    assert outcome.status == "pass", outcome.reason


def every(names):
    """One function that gives the results of all."""
    return lambda *args: tuple(getattr(torch, name)(*args) for name in names)


@pytest.mark.parametrize("x", [F, SPECIAL], ids=["values", "special"])
def test_unary(x):
    check(every([name for name in UNARY if name != "frac" or x is F]), x)


def test_unary_of_integers():
    check(every("abs floor neg sigmoid sqrt exp sign".split()), N.abs())


def test_binary():
    check(every(BINARY), F, G)


def test_binary_of_integers():
    check(every(INTEGER), N, J)


@pytest.mark.parametrize(("a", "b"), [(F, G), (N, J), (N, 3), (F, 0.3), (N, -2)])
def test_division_rounds_as_torch(a, b):
    check(lambda a: tuple(torch.div(a, b, rounding_mode=mode) for mode in (None, "floor", "trunc")), a)


def test_power_of_scalar_exponents():
    check(lambda x: tuple(x**exponent for exponent in (0, 0.5, -0.5, -1, 1, 2, 3, 4.0, -2, 2.5)), G.abs())


def test_integer_power():
    check(torch.pow, N, torch.tensor([0, 1, 3, -1, -2, 5, 2, 3]))
    check(torch.pow, 2, torch.tensor([0, 1, 10]))


CASES = [
    (lambda x, y: (torch.add(x, y, alpha=2.5), torch.rsub(x, y, alpha=0.5), torch.sub(x, 3, alpha=2)), (F, G)),
    (lambda x: (x + 10, x * 300), (torch.tensor([250, 3], dtype=torch.uint8),)),
    (lambda i, b: (i * 2.5, b * 3, i + b), (N, N > 0)),
    (torch.add, (F.bfloat16(), torch.tensor(1.0))),
    (torch.add, (N.int(), torch.tensor(1))),
    (lambda x: (x.clamp(-1, 1.5), x.clamp(min=0.0), x.clamp(1.0, -1.0)), (F,)),
    (lambda x: x.clamp(min=0.0), (SPECIAL,)),
    (lambda x, y: (x.clamp(y, y + 1), torch.addcmul(x, y, y, value=0.5), torch.addcdiv(x, x, y, value=3)), (F, G)),
    (lambda x, y: (torch.lerp(x, y, 0.3), torch.lerp(x, y, y), torch.where(x > 0, y, 2.0)), (F, G)),
    (lambda x: (x.round(decimals=1), (100 * x).round(decimals=-1), torch.float_power(x.abs(), 2)), (G,)),
    (lambda x: x.nan_to_num(2.0, 5.0, -6.0), (SPECIAL,)),
    (lambda x: (torch.isclose(x, x), torch.isclose(x, x, equal_nan=True), torch.isclose(x, x + 1e-6)), (SPECIAL,)),
    (lambda x: (x << 2, x >> 1), (N,)),
    (torch.frexp, (F,)),
]


def test_arguments():
    outcome = run_calls([(function, args, {}) for function, args in CASES])
    assert outcome.status == "pass", outcome.reason


def test_refused_for_halves():
    assert run_case(torch.nextafter, (F.bfloat16(), G.bfloat16()), {}).status == "unsupported"


def test_a_wrong_result_is_told():
    assert compare([F + 1e-2], [F]).status == "wrong"
    assert compare([F.long()], [F]).status == "wrong"
    assert compare([SPECIAL.nan_to_num(0.0)], [SPECIAL]).status == "wrong"
