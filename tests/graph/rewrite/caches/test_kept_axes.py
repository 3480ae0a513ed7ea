"""Tokens that are laid in one row and apart again are computed as they lie, where all between is by rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from steps import WIDTH, Model, Pair, causal
from torch import nn

EXPERTS, CHOSEN, GROUPS = 8, 3, 4


def attend(query, key, value, past, layer):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=causal(past, query.shape[2]))


class Routed(nn.Module):
    """Experts behind a router that lays tokens in a row by itself; ``way`` gives weights and places of the chosen."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(1)
        self.way, self.router = way, nn.Linear(WIDTH, EXPERTS)
        self.bias = nn.Parameter(torch.randn(EXPERTS))
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) * 0.2)

    def forward(self, x, past):
        weights, places = self.way(self, self.router(x.reshape(-1, WIDTH)))
        rows = x.reshape(-1, WIDTH)
        made = torch.bmm(self.up[places.reshape(-1)], rows.repeat_interleave(CHOSEN, 0).unsqueeze(-1)).squeeze(-1)
        made = (made.relu() * weights.reshape(-1, 1)).reshape(-1, CHOSEN, WIDTH).sum(1)
        return x + made.reshape(x.shape)


def shares(self, scores):
    weights, places = scores.softmax(-1).topk(CHOSEN)
    return weights / weights.sum(1, keepdim=True), places


def favoured(self, scores):
    scores = scores.sigmoid()
    places = (scores + self.bias).topk(CHOSEN)[1]
    return scores.gather(1, places), places


def of_groups(self, scores):
    scores = scores.sigmoid()
    best = scores.view(-1, GROUPS, EXPERTS // GROUPS).amax(-1).topk(2)[1]
    kept = torch.zeros_like(scores[:, :GROUPS]).scatter_(1, best, 1.0)
    kept = kept.unsqueeze(-1).expand(-1, GROUPS, EXPERTS // GROUPS).reshape(-1, EXPERTS)
    places = scores.masked_fill(~kept.bool(), 0.0).topk(CHOSEN)[1]
    return scores.gather(1, places), places


def among_others(self, scores):
    weights, places = scores.softmax(0).topk(CHOSEN)  # each row asks those of other tokens
    return weights, places


@pytest.mark.parametrize("way", [shares, favoured])
def test_tokens_are_not_laid_in_a_row(tmp_path, way):
    pair = Pair(Model(attend, Routed(way)), tmp_path)
    source = pair.source.partition("class Routed")[2].partition("class Attention")[0]
    assert source and "reshape" not in source and "rows_by_expert(" in source
    assert (", self.bias, 3)" in source) is (way is favoured)
    pair.check()


def test_parts_of_a_row(tmp_path):
    Pair(Model(attend, Routed(of_groups)), tmp_path).check()


def test_rows_that_ask_others_stay_in_a_row(tmp_path):
    source = Pair(Model(attend, Routed(among_others)), tmp_path).source
    assert "axis=0" in source and source.partition("class Routed")[2].count(".reshape(") > 1
