"""Slices of one product become one split where they take every number of it once."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from steps import Model, Pair, causal


def attend(query, key, value, past, layer):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=causal(past, query.shape[2]))


def in_three(x, past):
    return x[..., :8].repeat(1, 1, 4) * 0.5 + x[..., 8:24].repeat(1, 1, 2) - x[..., 24:].repeat(1, 1, 4)


def overlapping(x, past):
    return x[..., :24].repeat(1, 1, 4)[..., :32] + x[..., 8:].repeat(1, 1, 2)[..., :32]


def with_a_gap(x, past):
    return x[..., :8].repeat(1, 1, 4) + x[..., 24:].repeat(1, 1, 4)


@pytest.mark.parametrize(("embed", "splits"), [(in_three, True), (overlapping, False), (with_a_gap, False)])
def test_slices(embed, splits, tmp_path):
    pair = Pair(Model(attend, embed, layers=1), tmp_path)
    assert ("[8, 24]" in pair.source) is splits
    assert pair.generated([4, 9, 2]) == pair.wanted([4, 9, 2])
