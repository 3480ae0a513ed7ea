"""The largest scores are not sorted where nothing depends on their order, and sorted where something does."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn_mlx
import pytest
import torch
import torch.nn.functional as F
from steps import WIDTH, Model, Pair, causal
from torch import nn

from mlxport.graph.capture.export import capture
from mlxport.graph.rewrite.caches.chosen_experts import choose_experts
from mlxport.graph.rewrite.caches.free_order import is_free
from mlxport.graph.rewrite.caches.whole_choices import drop_whole_choices
from mlxport.graph.rewrite.fuse.values import Values
from mlxport.graph.rewrite.graph_queries import kind

SCORES = torch.randn(3, 8)
WAYS = {
    "summed": (lambda x, values, places: values.sum(-1), True),
    "the mean of a table's rows": (lambda x, values, places: (x.T[places] * values[..., None]).mean(1), True),
    "weighed": (lambda x, values, places: (x.gather(1, places) / values.sum(-1, keepdim=True)).sum(1), True),
    "turned": (lambda x, values, places: (values.T.unsqueeze(-1).expand(4, 3, 2) * 2).sum(0), True),
    "as one axis": (lambda x, values, places: values.reshape(3, 1, 4).softmax(-1).amax(-1), True),
    "told apart": (lambda x, values, places: (places[..., None] == torch.arange(8)).sum(1), True),
    "marked": (lambda x, values, places: torch.zeros_like(x).scatter(1, places, 1.0), True),
    "put back": (lambda x, values, places: torch.zeros_like(x).scatter(1, places, values.exp()), True),
    "returned": (lambda x, values, places: places, False),
    "the first": (lambda x, values, places: values[:, 0], False),
    "by rank": (lambda x, values, places: (values * torch.arange(4)).sum(-1), False),
    "summed up to each": (lambda x, values, places: values.cumsum(-1).sum(-1), False),
    "rank of the largest": (lambda x, values, places: values.argmax(-1), False),
    "other values put": (lambda x, values, places: torch.zeros_like(x).scatter(1, places, x[:, :4]), False),
    "in one row": (lambda x, values, places: values.reshape(2, 6).sum(-1), False),
    "sorted again": (lambda x, values, places: values.topk(2)[1], False),
}


class Way(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x):
        return self.way(x, *x.topk(4))


@pytest.mark.parametrize("name", WAYS)
def test_order(name):
    way, free = WAYS[name]
    captured = capture(Way(way), (SCORES,), dynamic=False)
    choice = next(node for node in captured.graph.nodes if kind(node) == "topk")
    assert is_free(choice) is free
    choose_experts(captured)
    assert any(kind(node) in ("chosen", "largest") for node in captured.graph.nodes) is free


def attend(query, key, value, past, layer):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=causal(past, query.shape[2]))


@pytest.mark.parametrize(("groups", "chosen", "hides"), [(1, 1, False), (4, 4, False), (4, 3, True)])
def test_a_choice_of_all_groups_hides_nothing(groups, chosen, hides):
    def way(x, *_):
        of_groups = x.view(-1, groups, 8 // groups).topk(2)[0].sum(-1)
        kept = torch.zeros_like(of_groups).scatter_(1, of_groups.topk(chosen, sorted=False)[1], 1)
        kept = kept.unsqueeze(-1).expand(-1, groups, 8 // groups).reshape(-1, 8)
        return x.masked_fill(~kept.bool(), -torch.inf) + torch.where(kept > 0, x, 0.0)

    captured = capture(Way(way), (SCORES,), dynamic=False)
    drop_whole_choices(captured, Values(captured))
    kinds = [kind(node) for node in captured.graph.nodes]
    assert ("masked_fill" in kinds) is ("where" in kinds) is hides


class Routers(nn.Module):
    """Two kinds of them: shares of a softmax, and groups of experts of which some are left out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.router, self.table = nn.Linear(WIDTH, 8), nn.Parameter(torch.randn(8, WIDTH))
        self.outside = nn.Linear(WIDTH, 8)

    def forward(self, x, past):
        rows = x.reshape(-1, WIDTH)
        values, places = torch.topk(self.router(rows).softmax(-1), 3)
        x = x + (self.table[places] * (values / values.sum(-1, keepdim=True))[..., None]).sum(1).view(x.shape)
        scores = self.outside(rows).sigmoid()
        groups = scores.view(-1, 4, 2).topk(2)[0].sum(-1)
        kept = torch.zeros_like(groups).scatter_(1, groups.topk(2)[1], 1).unsqueeze(-1).expand(-1, 4, 2)
        places = scores.masked_fill(~kept.reshape(-1, 8).bool(), -torch.inf).topk(3)[1]
        weights = scores.gather(1, places)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5
        return x + (self.table[places] * weights[..., None]).sum(1).view(x.shape)


def test_routers(tmp_path):
    pair = Pair(Model(attend, Routers(), layers=1), tmp_path)
    assert pair.source.count("mx.argpartition(") == 3 and pair.source.count("mx.topk(") == 1
    assert "argsort" not in pair.source and "astype(mx.int64)" not in pair.source
    assert "weights = shares(" in pair.source and "least=1e-20, scale=2.5)" in pair.source
    assert "part / " not in pair.source and pair.source.count("mx.softmax(") == 1
    pair.check()
    slopes_of = nn_mlx.value_and_grad(pair.ported, lambda ids: pair.ported(ids).square().mean())
    loss, slopes = slopes_of(mx.array([[4, 9, 2]]))
    assert loss.item() > 0 and mx.abs(slopes["embed"]["router"]["weight"]).max().item() > 0
