"""Rows for chosen experts are sorted by expert where they are many; what is not by rows stays as it is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from steps import WIDTH, Model, Pair, causal
from torch import nn

EXPERTS, CHOSEN, INNER = 5, 4, 24  # 21 tokens have 84 rows, 9 have 36: sorted, and not


def attend(query, key, value, past, layer):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=causal(past, query.shape[2]))


class Experts(nn.Module):
    """A mixture; ``way`` computes what the chosen experts make of rows, each of them once for a choice."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(1)
        self.way, self.router = way, nn.Linear(WIDTH, EXPERTS)
        self.up, self.down = (
            nn.Parameter(torch.randn(EXPERTS, *sizes) * 0.2) for sizes in ((2 * INNER, WIDTH), (WIDTH, INNER))
        )
        self.up_bias, self.down_bias = (nn.Parameter(torch.randn(EXPERTS, size)) for size in (2 * INNER, WIDTH))

    def forward(self, x, past):
        rows = x.reshape(-1, WIDTH)
        weights, chosen = torch.topk(self.router(rows).softmax(-1), CHOSEN)
        made = self.way(self, rows.repeat_interleave(CHOSEN, 0), chosen.reshape(-1), weights.reshape(-1, 1))
        return x + made.reshape(-1, CHOSEN, WIDTH).sum(1).reshape(x.shape)

    def multiplied(self, weight, rows, chosen):
        return torch.bmm(weight[chosen], rows.unsqueeze(-1)).squeeze(-1)


def plain(self, rows, chosen, weights):
    gate, up = self.multiplied(self.up, rows, chosen).chunk(2, dim=-1)
    return self.multiplied(self.down, F.silu(gate) * up, chosen) * weights


def with_bias(self, rows, chosen, weights):
    both = self.multiplied(self.up, rows, chosen) + self.up_bias[chosen]
    inner = both[:, ::2].clamp(max=2) * torch.tanh(both[:, 1::2])
    return (self.multiplied(self.down, inner, chosen) + self.down_bias[chosen]) * weights


def weighed_before(self, rows, chosen, weights):
    gate, up = self.multiplied(self.up, rows * weights, chosen).chunk(2, dim=-1)
    return self.multiplied(self.down, F.silu(gate) * up, chosen)


def over_rows(self, rows, chosen, weights):
    both = self.multiplied(self.up, rows, chosen)
    gate, up = (both - both.mean(0)).chunk(2, dim=-1)  # each row asks the others
    return self.multiplied(self.down, F.silu(gate) * up, chosen) * weights


@pytest.mark.parametrize("way", [plain, with_bias])
def test_rows_are_sorted_by_expert(tmp_path, way):
    pair = Pair(Model(attend, Experts(way)), tmp_path)
    assert pair.source.count("= rows_by_expert(") == 1 and "rows_of_tokens(" in pair.source
    assert pair.source.count(", experts, is_sorted)") == 3 and "repeat" not in pair.source
    pair.check()


def test_experts_of_a_list_are_sorted_too(tmp_path):
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.router = nn.Linear(WIDTH, EXPERTS)
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(WIDTH, INNER), nn.ReLU(), nn.Linear(INNER, WIDTH)) for _ in range(EXPERTS)
            )

        def forward(self, x, past):
            rows = x.reshape(-1, WIDTH)
            weights, chosen = torch.topk(self.router(rows).softmax(-1), CHOSEN)
            total = torch.zeros_like(rows)
            for number, expert in enumerate(self.experts):
                share = (weights * (chosen == number)).sum(-1, keepdim=True)
                total = total + expert(rows) * share
            return x + total.reshape(x.shape)

    pair = Pair(Model(attend, Listed()), tmp_path)
    assert "= rows_by_expert(" in pair.source
    pair.check()


def test_what_is_weighed_before_stays_as_it_is(tmp_path):
    pair = Pair(Model(attend, Experts(weighed_before)), tmp_path)
    assert "= rows_by_expert(" not in pair.source
    pair.check()


def test_rows_that_ask_others_are_not_sorted(tmp_path):
    source = Pair(Model(attend, Experts(over_rows)), tmp_path).source
    assert source.count("= rows_by_expert(") == 0
