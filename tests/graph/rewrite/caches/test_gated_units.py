"""``silu(gate) * x`` of one shape is mlx-lm's compiled function; of other shapes, or used twice, it stays as it is."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from steps import Model, Pair, causal


def attend(query, key, value, past, layer):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=causal(past, query.shape[2]))


def gated(x, past):
    swiglu = F.silu(x) * (x + 1)  # a name that the port's file imports
    return swiglu * swiglu.sigmoid()


def gated_by_one(x, past):
    return F.silu(x[..., :1]) * x


def used_twice(x, past):
    gate = F.silu(x)
    return gate * (x + 1) + gate


@pytest.mark.parametrize(("way", "whole"), [(gated, True), (gated_by_one, False), (used_twice, False)])
def test_gates(tmp_path, way, whole):
    pair = Pair(Model(attend, way), tmp_path)
    assert ("swiglu(" in pair.source) == whole
    pair.check()
