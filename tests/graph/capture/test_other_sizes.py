"""The second set of inputs is one that the original takes."""

from __future__ import annotations

import pytest
import torch
from comparing import compared
from torch import nn

import mlxport


class Bags(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.bags, self.out = nn.EmbeddingBag(20, 8, **options), nn.Linear(8, 3)

    def forward(self, indices, offsets):
        return self.out(self.bags(indices, offsets))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("options", "offsets"),
    [({"mode": "max"}, [0, 3, 5, 5]), ({"include_last_offset": True}, [0, 3, 5, 11])],
    ids=["starts", "starts and the end"],
)
def test_ascending_integers_are_places(options, offsets, seed):
    torch.manual_seed(seed)
    module, example = Bags(**options).eval(), (torch.randint(0, 20, (11,)), torch.tensor(offsets))
    out = compared(module, mlxport.port(module, example), example)
    assert out.shape[1] == 3
