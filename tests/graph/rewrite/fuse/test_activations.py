"""Activation functions and gates that are written out become MLX's."""

from __future__ import annotations

import math

import pytest
import torch
from fusing import of, together
from torch.nn import functional

CASES = {
    "nn.gelu(": [
        lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
        lambda x: x * 0.5 * (1.0 + torch.erf(x * 0.7071067811865476)),
        lambda x: x * (torch.erf(x / 2**0.5) + 1) / 2,
        lambda x: 0.5 * (x + x * torch.erf(x * 0.5**0.5)),
    ],
    "nn.gelu_approx(": [
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))),
        lambda x: x * 0.5 * (1.0 + torch.tanh(x * 0.7978845608028654 * (1 + 0.044715 * x * x))),
        lambda x: x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    ],
    "nn.gelu_fast_approx(": [lambda x: x * torch.sigmoid(1.702 * x), lambda x: torch.sigmoid(x * 1.702) * x],
    "nn.silu(": [
        lambda x: x * torch.sigmoid(x),
        lambda x: x / (1 + torch.exp(-x)),
        lambda x: x * (x.neg().exp() + 1) ** -1,
    ],
    "nn.mish(": [lambda x: x * torch.tanh(functional.softplus(x))],
    "nn.hardswish(": [lambda x: x * functional.relu6(x + 3) / 6, lambda x: x * (x + 3).clamp(0, 6) / 6],
}  # fmt: skip


@pytest.mark.parametrize("call", CASES)
def test_curves(call):
    result = together(CASES[call], (2, 5), second=((3, 7),))
    assert result.source.count(call) == len(CASES[call]) and len(result.applied) == len(CASES[call])


def halves(x):
    a, b = x.chunk(2, dim=-1)
    return a * torch.sigmoid(b)


def slices(x):
    return torch.sigmoid(x[..., 4:]) * x[..., :4]


def middle(x):
    a, b = torch.split(x, 4, dim=1)
    return a * b.sigmoid()


def test_gates():
    result = together([halves, slices, middle], (2, 8, 8), second=((3, 8, 8),))
    assert (
        result.source.count("nn.glu(") == 3 == result.applied.count("glu") and "nn.glu(args_0, axis=1)" in result.source
    )


def test_a_gelu_gate():
    def function(x):
        a, b = x.chunk(2, dim=-1)
        return a * 0.5 * (1 + torch.erf(a / math.sqrt(2))) * b

    result = of(function, (2, 8), second=((3, 8),))
    assert "nn.gelu(" in result.source


OTHERS = [
    lambda x: x * torch.sigmoid(1.7 * x),
    lambda x: torch.tanh(x) * x,
    lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * x**3))),
    lambda x: torch.sigmoid(x[..., :4]) * x[..., 4:],
    lambda x: x[..., :4] * torch.sigmoid(x[..., 2:6]),
    lambda x: x * torch.sigmoid(x.flip(0)),
]


def test_near_misses():
    result = together(OTHERS, (2, 8), second=((3, 8),))
    assert not result.applied


def test_a_sigmoid_that_is_used_elsewhere():
    def function(x):
        gate = torch.sigmoid(x)
        return x * gate, gate

    assert "silu" not in of(function, (2, 8), second=((3, 8),)).source
