"""Attention to latents: keys and values of many tokens are made of them, the query of one is mapped to them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from steps import HEADS, PROMPTS, WIDTH, Model, Pair, causal
from test_token_positions import turned
from torch import nn

OWN, SHARED, VALUES, RANK = 8, 4, 6, 10


class Latent(nn.Module):
    """Latents and a part of keys are remembered; each head's keys and values are made of them."""

    def __init__(self, number: int, way: str) -> None:
        super().__init__()
        self.number, self.way = number, way
        self.query = nn.Linear(WIDTH, HEADS * (OWN + SHARED), bias=False)
        self.down = nn.Linear(WIDTH, RANK + SHARED, bias=False)
        self.up = nn.Linear(RANK, HEADS * (OWN + VALUES), bias=way == "a bias")
        self.out = nn.Linear(HEADS * VALUES, WIDTH, bias=False)

    def forward(self, x, cache, past):
        sizes = [SHARED, OWN] if self.way == "shared first" else [OWN, SHARED]
        query = self.query(x).view(*x.shape[:2], HEADS, OWN + SHARED).transpose(1, 2)
        latent, shared = (part[:, None] for part in self.down(x).split([RANK, SHARED], dim=-1))
        if self.way != "no positions":
            parts = [turned(part, past) if part.shape[-1] == SHARED else part for part in query.split(sizes, dim=-1)]
            query, shared = torch.cat(parts, dim=-1), turned(shared, past)
        latent, shared = cache.update(latent, shared, self.number)
        made = self.up(latent).view(x.shape[0], -1, HEADS, OWN + VALUES).transpose(1, 2)
        if self.way == "values first":
            value, own = made.split([VALUES, OWN], dim=-1)
        else:
            own, value = made.split([OWN, VALUES], dim=-1)
        value = value + own[..., :VALUES] if self.way == "values of keys" else value
        shared = shared.expand(-1, HEADS, -1, -1)
        key = torch.cat([shared, own] if self.way == "shared first" else [own, shared], dim=-1)
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=causal(past, x.shape[1]))
        return x + self.out(output.transpose(1, 2).reshape(*x.shape[:2], -1))


@pytest.mark.parametrize(
    ("way", "is_written"),
    [
        ("DeepSeek's", True),
        ("shared first", True),
        ("values first", True),
        ("no positions", True),
        ("a bias", False),
        ("values of keys", False),
    ],
)
def test_one_token_and_many(way, is_written, tmp_path):
    model = Model(None, layers=1)
    model.layers = nn.ModuleList([Latent(0, way)])
    pair = Pair(model, tmp_path)
    assert ("MultiLinear(8, 10, 2)" in pair.source) is is_written
    assert ("self.up" in pair.source) is not is_written
    if way == "DeepSeek's":
        pair.check()
    assert [pair.generated(prompt) for prompt in PROMPTS[:2]] == [pair.wanted(prompt) for prompt in PROMPTS[:2]]
