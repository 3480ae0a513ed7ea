"""Bags of embeddings against torch: all that its operator gives."""

from __future__ import annotations

import pytest
import torch
from comparing import compared
from torch import nn

import mlxport


class Bags(nn.Module):
    def __init__(self, mode, padding_idx=None):
        super().__init__()
        self.mode, self.padding_idx = mode, padding_idx
        self.weight = nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, indices, offsets):
        return torch.embedding_bag(
            self.weight, indices, offsets, False, self.mode, False, None, False, self.padding_idx
        )


@pytest.mark.parametrize(("mode", "padding_idx"), [(0, None), (1, None), (1, 2), (2, None), (2, 2)])
def test_all_results(mode, padding_idx):
    module = Bags(mode, padding_idx).eval()
    example = torch.tensor([1, 5, 5, 2, 0, 2, 3, 2]), torch.tensor([0, 3, 3, 7])
    ported = mlxport.port(module, example)
    compared(module, ported, example)
    compared(module, ported, (torch.tensor([2, 4, 1]), torch.tensor([0, 1, 1, 2, 2])))
