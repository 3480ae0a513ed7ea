"""``as_strided``: strides are over what is in memory, whatever view they are taken of."""

from __future__ import annotations

import mlx.core as mx
import pytest
import torch
from tests.graph.comparing import compared
from torch import nn

import mlxport


class Strided(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


# What is computed, the example's shape, another shape.
CASES = {
    "a slice": (lambda x: torch.as_strided(x[1:], (2, 2), (3, 1)), (4, 3), (6, 5)),
    "a column": (lambda x: torch.as_strided(x[:, 1], (2,), (2,)), (4, 3), (4, 3)),
    "a transpose": (lambda x: torch.as_strided(x.t(), (2, 2), (3, 1)), (4, 3), (5, 2)),
    "an offset of its own": (lambda x: torch.as_strided(x[2:], (3, 3), (1, 2), 1), (5, 5), (6, 4)),
    "windows": (lambda x: x.as_strided((x.shape[0], x.shape[1] - 2, 3), (x.shape[1], 1, 1)), (4, 9), (2, 6)),
    "windows by strides": (
        lambda x: x.as_strided((x.size(0), x.size(1) - 2, 3), (x.stride(0), x.stride(1), x.stride(1))), (4, 9), (3, 5)),
    "a copy in another order": (lambda x: torch.as_strided(x.permute(1, 0, 2).contiguous(), (2, 2), (3, 1), 1),
                                (4, 3, 2), (2, 5, 3)),
    "no axes": (lambda x: torch.as_strided(x, (), ()), (5,), (3,)),
    "repeated": (lambda x: torch.as_strided(x, (3, 4), (0, 1)), (4,), (6,)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_reads_what_torch_reads(name):
    function, shape, other = CASES[name]
    module = Strided(function)
    port = mlxport.port(module, (torch.randn(shape),))
    compared(module, port, (torch.randn(other),))


def test_beyond_the_last_element():
    port = mlxport.port(Strided(lambda x: torch.as_strided(x, (3, 4), (4, 1))), (torch.randn(25),))
    with pytest.raises(ValueError, match=r"11 elements are too few for size \(3, 4\) with strides \(4, 1\) from 0 on"):
        port(mx.ones(11))
