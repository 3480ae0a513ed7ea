"""Complex numbers against torch."""

import torch
from conformance import run_calls

X = torch.tensor([1.5, -2.0, 0.0, 0.3])
Y = torch.tensor([-0.5, 0.0, 2.0, 1.0])
Z = torch.complex(X, Y)


CASES = [
    (lambda x, y: torch.complex(x, y) * 2j, (X, Y)),
    (lambda x, y: torch.complex(x, y), (torch.tensor([torch.inf, 1.0]), torch.tensor([torch.nan, -torch.inf]))),
    (torch.polar, (X.abs(), Y)),
    (lambda z: (z.real, z.imag, z.abs(), z.angle(), z.conj() + 1), (Z,)),
    (lambda x: (x.angle(), x.real, x.conj()), (torch.tensor([1.0, -1.0, 0.0, torch.nan]),)),
    (lambda z: (z.exp(), z.sin(), z.sqrt(), z.tanh(), z.sigmoid(), z.expm1(), z.sgn(), z.reciprocal()), (Z + 1,)),
    (lambda z: (z**2, z**3, z**0.5, z / (z + 1), z.square(), z == z.conj()), (Z + 1,)),
    (lambda z: (z.sum(), z.mean(0), z.cumsum(0), z.prod(), z.var()), (Z,)),
    (lambda z, x: (z + x, z * x, x - z, torch.where(x > 0, z, x)), (Z, X)),
]


def test_complex():
    outcome = run_calls([(function, args, {}) for function, args in CASES])
    assert outcome.status == "pass", outcome.reason
