"""Choices among equal values, whose order torch leaves open."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from torch import nn

import mlxport
from mlxport.graph.capture.examples import Example
from mlxport.graph.write.port_weights import from_torch
from mlxport.parity.port_calls import call_original


class Indexer(nn.Module):
    """Rows of the largest scores, most of which a ReLU has made 0: as DeepSeek-V3.2's indexer chooses its keys."""

    def forward(self, scores, rows):
        places = torch.relu(scores).topk(6, dim=-1).indices
        order = torch.relu(scores).argsort(-1, descending=True)
        return rows[places], rows[order]


def example():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 40, generator=generator) - 1.5, torch.randn(40, 3, generator=generator)


def test_the_first_of_equal_values_is_right():
    scores, rows = example()
    own = Indexer()(scores, rows)[0]
    ported = mlxport.port(Indexer().eval(), (scores, rows))  # which is compared
    chosen, _ = ported(*(mx.array(item.numpy()) for item in (scores, rows)))
    assert not torch.equal(own, torch.tensor(chosen.tolist()))  # torch by itself chooses others, as like as not


def test_where_torch_chooses_by_itself_is_said():
    scores, rows = example()
    found = call_original(lambda: Indexer().eval(), Example("example", (scores, rows), {}))
    assert "test_tied_choices.py" in found.ties and "in an order that torch leaves open" in found.ties
    apart = torch.arange(160.0).reshape(4, 40) + 1
    assert not call_original(lambda: Indexer().eval(), Example("example", (apart, rows), {})).ties


@pytest.mark.parametrize("largest", [True, False])
def test_unsorted_choices_are_compared_sorted(largest):
    class Unsorted(nn.Module):
        def forward(self, x):
            return torch.topk(x, 3, largest=largest, sorted=False)

    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    values, places = mlxport.port(Unsorted(), (x,))(from_torch(x))  # which is compared
    assert np.array_equal(np.array(values), x.topk(3, largest=largest).values.numpy())
    assert np.array_equal(np.array(places), x.topk(3, largest=largest).indices.numpy())
