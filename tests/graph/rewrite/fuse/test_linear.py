"""Linear layers in their other spellings become nn.Linear."""

from __future__ import annotations

import mlx.nn as mnn
import pytest
import torch
from fusing import fused
from mlx.utils import tree_flatten
from torch import nn

from mlxport.graph.build import build
from mlxport.graph.capture.export import capture
from mlxport.port.in_memory import _instance


class Weights(nn.Module):
    """A matrix and a vector."""

    def __init__(self, function, *shape):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.function = function
        self.weight = nn.Parameter(torch.randn(shape, generator=generator))
        self.bias = nn.Parameter(torch.randn(7, generator=generator))

    def forward(self, x):
        return self.function(self, x)


OUT_IN = [
    lambda m, x: x @ m.weight.T + m.bias,
    lambda m, x: m.bias + torch.matmul(x, m.weight.t()),
    lambda m, x: nn.functional.linear(x, m.weight) + m.bias,
    lambda m, x: torch.einsum("bld,od->blo", x, m.weight) + m.bias,
    lambda m, x: torch.addmm(m.bias, x.reshape(-1, 16), m.weight.transpose(0, 1)).view(*x.shape[:2], 7),
    lambda m, x: torch.mm(x.flatten(0, 1), m.weight.T).view(*x.shape[:-1], 7) + m.bias,
    lambda m, x: torch.tanh(x) @ m.weight.T,
]
IN_OUT = [
    lambda m, x: x @ m.weight + m.bias,
    lambda m, x: torch.einsum("...d,do->...o", x, m.weight) + m.bias,
    lambda m, x: torch.addmm(m.bias, x.view(-1, x.size(-1)), m.weight).view(x.size()[:-1] + (7,)),
]


class All(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.ModuleList(Weights(function, 7, 16) for function in OUT_IN)
        self.turned = nn.ModuleList(Weights(function, 16, 7) for function in IN_OUT)

    def forward(self, x):
        return [module(x) for module in [*self.plain, *self.turned]]


def test_spellings_are_linear_layers():
    x, y = torch.randn(2, 5, 16), torch.randn(3, 4, 16)
    result = fused(All(), (x,), (y,))
    assert result.applied == ["linear"] * (len(OUT_IN) + len(IN_OUT))
    assert "addmm" not in result.source and "@" not in result.source and "einsum" not in result.source
    assert "nn.Linear(16, 7)" in result.source


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Weights(lambda m, x: torch.addmm(m.bias, x.view(-1, 64), m.weight).view(*x.shape[:-1], 7), 64, 7)

    def forward(self, x):
        return torch.relu(self.inner(x))


def test_layers_quantize_under_their_module_names():
    port = _instance(build(capture(Outer().eval(), (torch.randn(2, 5, 64),))))
    assert sorted(name for name, _ in tree_flatten(port.parameters())) == ["inner.bias", "inner.weight"]
    mnn.quantize(port, group_size=64, bits=8)
    assert isinstance(port.inner, mnn.QuantizedLinear)


class Bare(nn.Module):
    """Parameters that are no layer's."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.randn(8, 16))
        self.b = nn.Parameter(torch.randn(8))
        self.out_weight = nn.Parameter(torch.randn(8, 3))

    def forward(self, x):
        return torch.relu(x @ self.W.T + self.b) @ self.out_weight


def test_bare_parameters():
    result = fused(Bare(), (torch.randn(2, 16),), (torch.randn(5, 16),))
    assert "self.W = nn.Linear(16, 8)" in result.source and "self.out = nn.Linear(8, 3, bias=False)" in result.source


class Shared(Bare):
    def forward(self, x):
        return x @ self.W.T + (x[:, None] * self.W).sum(-1)


class Scaled(Bare):
    def forward(self, x):
        return torch.addmm(self.b, x, self.W.T, beta=2)


class ByInput(nn.Module):
    def forward(self, x):
        return x @ x.T


@pytest.mark.parametrize("module", [Shared, Scaled, ByInput])
def test_what_is_no_layer(module):
    assert "nn.Linear" not in fused(module(), (torch.randn(4, 16),)).source


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)

    def forward(self, ids):
        return torch.tanh(self.embed(ids)) @ self.embed.weight.T


def test_a_tied_head_is_the_embedding():
    result = fused(Tied(), (torch.arange(6).reshape(2, 3),), (torch.arange(8).reshape(2, 4),))
    assert "self.embed.as_linear(" in result.source
