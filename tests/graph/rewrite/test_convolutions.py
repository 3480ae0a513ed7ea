"""Convolutions as layers that store their weights as MLX has them, and those that no layer computes."""

from __future__ import annotations

import pytest
import torch
from mlx.utils import tree_flatten
from torch import nn

import mlxport


class Around(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.up = conv

    def forward(self, x):
        return torch.tanh(self.up(x)) * 2


def ported(conv, *shape, dtype=torch.float32):
    torch.manual_seed(0)
    port = mlxport.port(Around(conv).eval(), (torch.randn(shape, dtype=dtype),))
    return port, {name: array.shape for name, array in tree_flatten(port.parameters())}


@pytest.mark.parametrize(
    ("conv", "shape", "stored"),
    [
        (nn.ConvTranspose1d(8, 12, 5, stride=2, padding=1, groups=4, output_padding=1), (2, 8, 11), (12, 5, 2)),
        (nn.ConvTranspose2d(8, 12, (3, 5), (1, 2), 1, groups=2, bias=False), (2, 8, 7, 6), (12, 3, 5, 4)),
        (nn.ConvTranspose1d(4, 4, 3, groups=4, dilation=2), (2, 4, 9), (4, 3, 1)),
    ],
)
def test_transposed_in_groups(conv, shape, stored):
    port, shapes = ported(conv, *shape)
    assert "self.up = GroupedConvTranspose(" in port.source and shapes["up.weight"] == stored
    assert "self.up(" in port.source and "grouped_transposed_weight" not in port.source


@pytest.mark.parametrize(
    ("conv", "shape", "dtype"),
    [
        (nn.ConvTranspose1d(4, 6, 2, stride=3, padding=2), (2, 4, 9), torch.float32),
        (nn.ConvTranspose2d(4, 6, 2, stride=3, padding=2, groups=2), (2, 4, 9, 8), torch.float32),
        (nn.ConvTranspose3d(8, 12, 3, stride=2, groups=2), (2, 8, 3, 4, 5), torch.float32),
        (nn.Conv1d(4, 6, 3, dtype=torch.complex64), (2, 4, 9), torch.complex64),
        (nn.Conv1d(4, 6, 4, padding="same"), (2, 4, 9), torch.float32),
    ],
    ids=["padding beyond the kernel", "the same in groups", "three axes in groups", "complex", "uneven same"],
)
def test_no_layer_computes_it(conv, shape, dtype):
    port, shapes = ported(conv, *shape, dtype=dtype)
    assert shapes["up.weight"] == tuple(conv.weight.shape) and "self.up(" not in port.source
