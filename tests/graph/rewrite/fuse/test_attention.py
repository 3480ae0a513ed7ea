"""Attention in many spellings becomes mx.fast.scaled_dot_product_attention, and near-misses do not."""

from __future__ import annotations

import math
import re

import pytest
import torch
from fusing import Function, fused, of, together
from torch.nn import functional

CALL = "mx.fast.scaled_dot_product_attention("
MIN = torch.finfo(torch.float32).min
Q, K, G = (2, 4, 5, 8), (2, 4, 7, 8), (2, 2, 7, 8)
Q2, K2, G2 = (3, 4, 9, 8), (3, 4, 6, 8), (3, 2, 6, 8)


def plain(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(8), -1) @ v


def scaled_queries(q, k, v):
    return torch.matmul(functional.softmax(torch.matmul(q * 8**-0.5, k.mT), dim=-1, dtype=torch.float32).to(q.dtype), v)


def scaled_both(q, k, v):
    s = 8**-0.25
    return ((q * s) @ (k * s).transpose(2, 3)).softmax(-1) @ v


def einsum_heads_first(q, k, v):
    a = torch.einsum("bhqd,bhkd->bhqk", q, k) * 0.125
    return torch.einsum("bhqk,bhkd->bhqd", a.softmax(-1), v)


def dots(q, k, v):
    a = torch.einsum("...qd,...kd->...qk", q, k) * 0.3
    return torch.einsum("...qk,...kd->...qd", torch.dropout(a.softmax(-1), 0.5, False), v)


def keys_first(q, k, v):
    a = torch.softmax((k @ q.transpose(-1, -2)) * 0.25, dim=-2)
    return a.transpose(-1, -2) @ v


def stable(q, k, v):
    scores = q @ k.mT
    return (scores - scores.amax(-1, keepdim=True)).softmax(-1) @ v


def flat_heads(q, k, v):
    b, h, n, d = q.shape
    m = k.shape[2]
    scores = torch.bmm(q.reshape(b * h, n, d), k.reshape(b * h, m, d).transpose(1, 2)) * 0.5
    return torch.bmm(scores.softmax(-1), v.reshape(b * h, m, d)).view(b, h, n, d)


def alpha(q, k, v):
    b, h, n, d = q.shape
    m = k.shape[2]
    empty = torch.zeros(b * h, n, m)
    scores = torch.baddbmm(empty, q.reshape(b * h, n, d), k.reshape(b * h, m, d).mT, beta=0, alpha=0.25)
    return torch.bmm(scores.softmax(-1), v.reshape(b * h, m, d)).view(b, h, n, d)


def torchs(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v)


SPELLINGS = [plain, scaled_queries, scaled_both, einsum_heads_first, dots, stable, flat_heads, alpha, torchs]


def test_spellings():
    result = together(SPELLINGS, Q, K, K, second=(Q2, K2, K2))
    assert result.source.count(CALL) == len(SPELLINGS) == result.applied.count("attention")
    assert "softmax" not in result.source and not result.declined


def test_attention_of_transposed_scores_stays_right():
    of(keys_first, Q, K, K, second=(Q2, K2, K2))


def heads_last(q, k, v):
    a = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhqk,bkhd->bqhd", torch.softmax(a, dim=-1), v)


def heads_last_scores_mixed(q, k, v):
    a = torch.einsum("bqhd,bkhd->bqhk", q, k) * 0.1
    return torch.einsum("bqhk,bkhd->bqhd", a.softmax(-1), v)


def heads_last_permuted(q, k, v):
    q, k, v = (x.permute(0, 2, 1, 3) for x in (q, k, v))
    return (q.matmul(k.permute(0, 1, 3, 2)).div(3.0).softmax(-1) @ v).permute(0, 2, 1, 3).flatten(2)


def test_heads_behind_the_length():
    functions = [heads_last, heads_last_scores_mixed, heads_last_permuted]
    shapes = ((2, 5, 4, 8), (2, 7, 4, 8), (2, 7, 4, 6))
    result = together(functions, *shapes, second=((3, 6, 4, 8), (3, 4, 4, 8), (3, 4, 4, 6)))
    assert result.source.count(CALL) == 3 and "einsum" not in result.source and not result.declined


@pytest.mark.parametrize("shapes", [((2, 5, 8), (2, 7, 8), (2, 7, 6)), ((5, 8), (7, 8), (7, 3))])
def test_fewer_axes(shapes):
    result = of(lambda q, k, v: (q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v, *shapes, dynamic=False)
    assert CALL in result.source and result.applied == ["attention"]


# Masks


def added(q, k, v, mask):
    return (q @ k.mT * 0.5 + mask).softmax(-1) @ v


def added_before_scaling(q, k, v, mask):
    return ((q @ k.mT + mask) / 4).softmax(-1) @ v


def subtracted(q, k, v, mask):
    return (q @ k.mT - mask).softmax(-1) @ v


def test_added_masks():
    functions = [added, added_before_scaling, subtracted]
    result = together(functions, Q, K, K, (2, 1, 5, 7), second=(Q2, K2, K2, (3, 1, 9, 6)))
    assert result.source.count(CALL) == 3 == result.source.count("mask=") and not result.declined


def booleans(seed: int, *shape: int) -> torch.Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask[..., 0] = True
    return mask


def filled(q, k, v, mask):
    return (q @ k.mT).masked_fill(~mask, -math.inf).softmax(-1) @ v


def filled_low(q, k, v, mask):
    return (q @ k.mT).masked_fill(mask.logical_not(), MIN).softmax(-1) @ v


def chosen(q, k, v, mask):
    return torch.where(mask, q @ k.mT * 0.5, torch.tensor(MIN)).softmax(-1) @ v


def chosen_billion(q, k, v, mask):
    return torch.where(mask, q @ k.mT * 0.5, -1e9).softmax(-1) @ v


def torchs_boolean(q, k, v, mask):
    return functional.scaled_dot_product_attention(q, k, v, mask)


@pytest.mark.parametrize("rows", [5, 1])
def test_boolean_masks(rows):
    functions = [filled, filled_low, chosen, chosen_billion, torchs_boolean]
    q, k = torch.randn(Q), torch.randn(K)
    module = Function(lambda *inputs: [function(*inputs) for function in functions])
    result = fused(module, (q, k, k * 2, booleans(1, 2, 1, rows, 7)), dynamic=False)
    assert result.source.count(CALL) == 4 and result.source.count("masked_attention(") == 1


def test_rows_that_see_nothing_stay_what_torch_makes_of_them():
    functions = [filled_low, chosen, chosen_billion, torchs_boolean]
    q, k = torch.randn(Q), torch.randn(K)
    mask = booleans(1, 2, 1, 5, 7)
    mask[0, 0, 2] = False
    module = Function(lambda *inputs: [function(*inputs) for function in functions])
    fused(module, (q, k, k * 2, mask), dynamic=False)


def test_a_weak_mask_is_declined():
    q, k = torch.randn(Q), torch.randn(K)
    module = Function(lambda q, k, v, m: (q @ k.mT).masked_fill(~m, -1e4).softmax(-1) @ v)
    result = fused(module, (q, k, k, booleans(1, 5, 7)), dynamic=False)
    assert CALL not in result.source and "-10000" in result.declined[0]


# Causal masks


def tril(q, k, v):
    mask = torch.tril(torch.ones(q.shape[2], k.shape[2], dtype=torch.bool))
    return (q @ k.mT).masked_fill(~mask, -math.inf).softmax(-1) @ v


def triu(q, k, v):
    mask = torch.triu(torch.full((q.shape[2], k.shape[2]), -math.inf), diagonal=1)
    return (q @ k.mT * 0.5 + mask).softmax(-1) @ v


def aranges(q, k, v):
    n = torch.arange(q.shape[2])
    return torch.where(n[:, None] >= n, q @ k.mT, -1e4).softmax(-1) @ v


def torch_flag(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def torch_mask(q, k, v):
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def old_gpt(q, k, v):
    b = torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16)[:, :, : q.shape[2], : k.shape[2]]
    return ((q @ k.mT).masked_fill(b == 0, float("-inf"))).softmax(-1) @ v


CAUSAL = [tril, triu, aranges, torch_flag, torch_mask, old_gpt]


def on_one(function):
    return lambda q: function(q, q * 0.5, q + 1)


def test_causal():
    result = together(list(map(on_one, CAUSAL)), Q, second=((3, 4, 9, 8),))
    assert result.source.count('mask="causal"') == len(CAUSAL) == result.applied.count("attention")
    assert "tri" not in result.source


def window(q, k, v):
    n = torch.arange(q.shape[2])
    mask = (n[:, None] >= n) & (n[:, None] - n < 3)
    return (q @ k.mT).masked_fill(~mask, -math.inf).softmax(-1) @ v


def large_window(q, k, v):
    n = torch.arange(q.shape[2])
    mask = (n[:, None] >= n) & (n > n[:, None] - 5000)
    return functional.scaled_dot_product_attention(q, k, v, mask)


def test_sliding_windows():
    result = together([on_one(window), on_one(large_window)], Q, second=((3, 4, 9, 8),))
    assert re.search(r"sliding_window_mask\(.*, 3\)", result.source)
    assert re.search(r"sliding_window_mask\(.*, 5000\)", result.source)
    assert result.source.count(CALL) == 2


def strict(q, k, v):
    n = torch.arange(q.shape[2])
    return (q @ k.mT).masked_fill(n[:, None] <= n, -1e9).softmax(-1) @ v


def blocks(q, k, v):
    n = torch.arange(q.shape[2])
    mask = (n[:, None] >= n) & (n[:, None] // 64 == n // 64)
    return (q @ k.mT).masked_fill(~mask, -1e9).softmax(-1) @ v


def huge_blocks(q, k, v):
    n = torch.arange(q.shape[2])
    mask = (n[:, None] >= n) & (n[:, None] // 4096 == n // 4096)
    return (q @ k.mT).masked_fill(~mask, -1e9).softmax(-1) @ v


def test_what_only_looks_causal_keeps_its_mask():
    result = together(list(map(on_one, [strict, blocks, huge_blocks])), Q, second=((3, 4, 9, 8),))
    assert '"causal"' not in result.source


def test_causal_with_more_keys_is_torchs():
    result = of(torch_flag, Q, K, K, second=(Q2, (3, 4, 12, 8), (3, 4, 12, 8)))
    assert '"causal"' not in result.source


def test_a_mask_of_ones_is_none():
    def function(q, k, v):
        mask = torch.ones(q.shape[0], 1, q.shape[2], k.shape[2], dtype=torch.bool)
        return functional.scaled_dot_product_attention(q, k, v, mask)

    result = of(function, Q, K, K, second=(Q2, K2, K2))
    assert "mask" not in result.source.replace("masked", "")


# Repeated keys


def repeated(q, k, v):
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    return (q @ k.mT).softmax(-1) @ v


def expanded(q, k, v):
    b, h, n, d = k.shape
    k, v = (x[:, :, None].expand(b, h, 2, n, d).reshape(b, h * 2, n, d) for x in (k, v))
    return functional.scaled_dot_product_attention(q, k, v)


def torch_gqa(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def broadcast(q, k, v):
    b, h, n, d = q.shape
    a = (q.view(b, 2, 2, n, d) @ k[:, :, None].mT * 0.5).softmax(-1)
    return (a @ v[:, :, None]).reshape(b, h, n, d)


def five_letters(q, k, v):
    b, h, n, d = q.shape
    a = torch.einsum("bgnqd,bgkd->bgnqk", q.view(b, 2, 2, n, d), k) * 0.5
    return torch.einsum("bgnqk,bgkd->bgnqd", a.softmax(-1), v).flatten(1, 2)


def test_repeated_keys_are_dropped():
    functions = [repeated, expanded, torch_gqa, broadcast, five_letters]
    result = together(functions, Q, G, G, second=(Q2, G2, G2))
    assert result.source.count(CALL) == 5 == result.applied.count("attention")
    assert "broadcast_to" not in result.source and "repeat" not in result.source


def test_tiled_heads_are_not_groups():
    def tiled(q, k, v):
        k, v = (x.repeat(1, 2, 1, 1) for x in (k, v))
        return (q @ k.mT).softmax(-1) @ v

    result = of(tiled, Q, G, G, dynamic=False)
    assert CALL in result.source and "tile" in result.source


def test_one_head_of_keys():
    result = of(lambda q, k, v: (q @ k.mT).softmax(-1) @ v, Q, (2, 1, 7, 8), (2, 1, 7, 8))
    assert CALL in result.source and "broadcast_to" not in result.source


def test_learned_queries_are_broadcast():
    result = of(lambda q, k, v: (q @ k.mT).softmax(-1) @ v, (1, 4, 5, 8), K, K, dynamic=False)
    assert CALL in result.source


# Near-misses


def test_weights_that_are_returned():
    def function(q, k, v):
        weights = (q @ k.mT).softmax(-1)
        return weights @ v, weights

    result = of(function, Q, K, K, dynamic=False)
    assert CALL not in result.source and result.declined == ["the attention weights are used elsewhere"]


def test_scores_that_are_returned():
    def function(q, k, v):
        scores = q @ k.mT
        return (scores * 0.5).softmax(-1) @ v, scores

    result = of(function, Q, K, K, dynamic=False)
    assert CALL not in result.source and result.declined == ["the scores are used elsewhere"]


def test_a_scale_that_is_computed():
    result = of(lambda q, k, v: (q @ k.mT * q.mean()).softmax(-1) @ v, Q, K, K, dynamic=False)
    assert CALL not in result.source and result.declined == ["the scores are scaled by a tensor"]


def test_capped_scores():
    result = of(lambda q, k, v: (torch.tanh(q @ k.mT / 30) * 30).softmax(-1) @ v, Q, K, K, dynamic=False)
    assert CALL not in result.source and "capped" in result.declined[0]


def gpt_oss(self, q, k, v):
    scores = q @ k.mT * 0.25
    column = self.sinks.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[-2], -1)
    scores = torch.cat([scores, column], dim=-1)
    scores = scores - scores.max(dim=-1, keepdim=True).values
    return scores.softmax(-1)[..., :-1] @ v


def by_query(self, q, k, v):
    column = self.sinks.reshape(1, 1, -1, 1).expand(2, 4, -1, 1)
    return torch.cat([q @ k.mT, column], dim=-1).softmax(-1)[..., :-1] @ v


def test_sinks():
    inputs = torch.randn(Q), torch.randn(K), torch.randn(K)
    result = fused(Function(gpt_oss, sinks=torch.randn(4)), inputs, dynamic=False)
    assert "sinks=self.sinks" in result.source and "softmax" not in result.source
    result = fused(Function(by_query, sinks=torch.randn(5)), inputs, dynamic=False)
    assert CALL not in result.source and result.declined == ["the sinks are not one for each head"]


def test_softmax_over_the_queries():
    result = of(lambda q, k, v: (q @ k.mT).softmax(-2) @ v, Q, K, K, dynamic=False)
    assert CALL not in result.source and result.declined


def test_softmax_that_is_no_attention():
    result = of(lambda q, k, v: (q @ k.mT).softmax(-1).sum(-1), Q, K, K, dynamic=False)
    assert CALL not in result.source and not result.declined and not result.applied


def test_fixed_sizes():
    result = of(lambda q: tril(q, q * 0.5, q + 1), Q, dynamic=False)
    assert 'mask="causal"' in result.source


class RelativeToScaled(torch.nn.Module):
    """Scaled queries also give the scores of positions: their scale may not be taken from there."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (torch.nn.Linear(16, 16) for _ in range(3))
        self.positions = torch.nn.Parameter(torch.randn(20, 20, 4))

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = self.q(x) * 4**-0.5, self.k(x), self.v(x)
        q, k, v = (y.view(batch, length, 4, 4).transpose(1, 2).reshape(batch * 4, length, 4) for y in (q, k, v))
        positions = self.positions[:length, :length]
        relative = torch.matmul(q.transpose(0, 1), positions.transpose(-2, -1)).transpose(0, 1)
        scores = (torch.bmm(q, k.transpose(1, 2)) + relative).view(batch, 4, length, length)
        scores = scores + torch.where(x[:, :, 0] > 1.5, -1e4, 0.0)[:, None, None]
        weights = scores.view(batch * 4, length, length).softmax(-1)
        return torch.bmm(weights, v).view(batch, 4, length, 4).transpose(1, 2).reshape(batch, length, 16)


def test_scaled_queries_that_others_use():
    result = fused(RelativeToScaled(), (torch.randn(2, 7, 16),), (torch.randn(3, 9, 16),))
    assert "attention" in result.applied
