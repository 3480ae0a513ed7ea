"""Rotary embeddings of channels put in halves turn pairs as they lie, where scores alone are made of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from steps import Model, Pair, causal
from test_token_positions import turned


def turned_in_pairs(x, past):
    """Even channels before odd ones, as DeepSeek's models have it."""
    return turned(x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2), past)


def attend(query, key, value, past, layer):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=causal(past, query.shape[2]))


def seen(query, key, value, past, layer):
    return attend(query, key, value + key, past, layer)


def in_two_orders(query, key, value, past, layer):
    return attend(query, torch.cat([key[..., 2:], key[..., :2]], -1), value, past, layer)


@pytest.mark.parametrize(
    ("way", "turn", "traditional"),
    [(attend, turned_in_pairs, True), (seen, turned_in_pairs, False), (in_two_orders, turned_in_pairs, False)],
)
def test_pairs(way, turn, traditional, tmp_path):
    model = Model(way, layers=1)
    model.layers[0].turn = turn
    pair = Pair(model, tmp_path)
    assert pair.source.count("traditional=True") == (2 if traditional else 0)
    assert ("[..., ::2]" in pair.source) is not traditional
    assert pair.generated([4, 9, 2]) == pair.wanted([4, 9, 2])
