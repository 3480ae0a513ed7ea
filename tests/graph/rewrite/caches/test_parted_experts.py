"""Parts of an experts' product are products with a matrix each; what is used whole stays one."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from steps import WIDTH, Model, Pair, causal
from torch import nn

EXPERTS, CHOSEN, INNER = 5, 4, 24


def attend(query, key, value, past, layer):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=causal(past, query.shape[2]))


class Experts(nn.Module):
    """A mixture whose first product has ``parts`` of channels; ``way`` makes one of them."""

    def __init__(self, way, parts=2, turned=False):
        super().__init__()
        torch.manual_seed(1)
        self.way, self.turned, self.router = way, turned, nn.Linear(WIDTH, EXPERTS)
        sizes = (WIDTH, parts * INNER) if turned else (parts * INNER, WIDTH)
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, *sizes) * 0.2)
        self.gate_up_bias = nn.Parameter(torch.randn(EXPERTS, parts * INNER))
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER) * 0.2)

    def forward(self, x, past):
        rows = x.reshape(-1, WIDTH)
        weights, chosen = torch.topk(self.router(rows).softmax(-1), CHOSEN)
        experts = chosen.reshape(-1)
        matrices = self.gate_up_proj[experts]
        matrices = matrices.transpose(1, 2) if self.turned else matrices
        both = torch.bmm(matrices, rows.repeat_interleave(CHOSEN, 0).unsqueeze(-1)).squeeze(-1)
        inner = self.way(both + self.gate_up_bias[experts])
        made = torch.bmm(self.down_proj[experts], inner.unsqueeze(-1)).squeeze(-1) * weights.reshape(-1, 1)
        return x + made.reshape(-1, CHOSEN, WIDTH).sum(1).reshape(x.shape)


def halves(both):
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up


def in_turn(both):
    return F.silu(both[..., ::2]) * both[..., 1::2]


class Thirds(nn.Module):
    def forward(self, both):
        first, second, third = both.split(INNER, dim=-1)
        return torch.tanh(first) * second + third


def fourths(both):
    parts = both.split(INNER, dim=-1)
    return torch.tanh(parts[0]) * parts[3] + parts[1] * parts[2]


def whole_too(both):
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up + both.sum(-1, keepdim=True)


def a_part_only(both):
    return torch.tanh(both[..., :INNER])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("way", [halves, in_turn])
def test_a_gate_and_what_it_lets_through_have_a_matrix_each(tmp_path, way, turned):
    pair = Pair(Model(attend, Experts(way, turned=turned)), tmp_path)
    for name in ("gate_proj", "up_proj"):
        assert f"self.{name} = SwitchLinear(" in pair.source
        assert re.search(rf"self\.{name}\(\w+, experts, is_sorted\)", pair.source)
    assert "gate_up" not in pair.source
    pair.check()


@pytest.mark.parametrize(
    ("experts", "names"),
    [(Experts(Thirds(), parts=3), ("first", "second", "third")), (Experts(fourths, parts=4), range(4))],
)
def test_other_parts_are_called_as_in_the_original_or_numbered(tmp_path, experts, names):
    pair = Pair(Model(attend, experts), tmp_path)
    assert all(f"self.gate_up_proj_{name}(" in pair.source for name in names)
    pair.check()


@pytest.mark.parametrize("way", [whole_too, a_part_only])
def test_what_is_used_otherwise_stays_one_matrix(tmp_path, way):
    pair = Pair(Model(attend, Experts(way)), tmp_path)
    assert "self.gate_up_proj = SwitchLinear(" in pair.source
    pair.check()
