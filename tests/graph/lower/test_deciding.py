"""Lowerings whose code depends on free sizes: decided by what torch.export knows, computed when called, or refused."""

from __future__ import annotations

import pytest
import sympy
import torch
import torch.nn.functional as F
from tests.graph.comparing import compared
from torch import nn

import mlxport
from mlxport.graph.lower.expr import Expr, same_size, surely
from mlxport.graph.lower.symbolic_sizes import placeholder
from mlxport.graph.lower.unsupported import UnsupportedOp


class Computing(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, a, b, c=None):
        return self.function(a, b) if c is None else self.function(a, b, c)


def _grouped(x, weight):  # StyleGAN2's convolution: a weight of its own for each of the batch
    batch, channels, *sizes = x.shape
    out = F.conv2d(x.reshape(1, batch * channels, *sizes), weight.flatten(0, 1), padding=1, groups=batch)
    return out.view(batch, -1, *sizes)


def _pooled(x, groups):
    sums = torch.zeros(2, x.size(1)).index_add_(0, groups, x)
    return sums / torch.bincount(groups, minlength=2).clamp(min=1).unsqueeze(1)


def _index(*shape):
    return torch.randint(0, 4, shape)


X = torch.randn(10, 8, 6)
# What is computed, the example, arguments of other sizes.
CASES = {
    "scatter": (lambda a, i, s: a.scatter(0, i, s), (X, _index(2, 4, 3), torch.randn(5, 8, 6)), None),
    "scatter_add": (lambda a, i, s: a.scatter_add(0, i, s), (X, _index(2, 4, 3), torch.randn(2, 8, 3)),
                    (X, _index(3, 5, 2), torch.randn(4, 5, 2))),
    "scatter_reduce": (lambda a, i, s: a.scatter_reduce(-1, i, s, "amax"), (X, _index(2, 4, 3), torch.randn(5, 8, 6)),
                       (X, _index(2, 8, 3), torch.randn(2, 8, 4))),
    "gather": (lambda a, i: a.gather(1, i), (X, _index(2, 4, 3)), (torch.randn(4, 4, 4), _index(4, 5, 2))),
    "transposed convolution": (
        lambda a, w: F.conv_transpose1d(a, w, padding=1), (torch.randn(2, 3, 7), torch.randn(3, 4, 3)),
        (torch.randn(1, 3, 9), torch.randn(3, 4, 1)),  # the padding is wider than the kernel reaches
    ),
    "strided transposed convolution": (
        lambda a, w: F.conv_transpose2d(a, w, padding=3, stride=2, output_padding=1),
        (torch.randn(2, 3, 7, 6), torch.randn(3, 4, 3, 5)), (torch.randn(1, 3, 5, 5), torch.randn(3, 4, 2, 4)),
    ),
    "same padding": (lambda a, w: F.conv1d(a, w, padding="same"), (torch.randn(2, 3, 7), torch.randn(4, 3, 3)),
                     (torch.randn(2, 3, 9), torch.randn(4, 3, 5))),
    "groups": (_grouped, (torch.randn(2, 4, 6, 6), torch.randn(2, 5, 4, 3, 3)),
               (torch.randn(3, 4, 5, 7), torch.randn(3, 5, 4, 3, 3))),
    "bincount": (_pooled, (torch.randn(10, 6), torch.randint(0, 2, (10,))),
                 (torch.randn(4, 5), torch.tensor([0, 0, 1, 0]))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_of_free_sizes(name):
    function, example, other = CASES[name]
    module = Computing(function)
    port = mlxport.port(module, example)
    compared(module, port, example)
    if other is not None:
        compared(module, port, other)


def test_what_is_open_is_refused():
    size = Expr(placeholder(sympy.Symbol("s77", integer=True, positive=True)), 4, dynamic=True)
    assert not surely(size > 3) and same_size(size + 1, size + 1) and surely(size - size == 0)
    with pytest.raises(UnsupportedOp, match="depends on s77 > 3, which is open as long as sizes are free"):
        bool(size > 3)
