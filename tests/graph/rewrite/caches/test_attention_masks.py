"""What new tokens see of all: each form of mask becomes what mlx-lm's caches have for it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from steps import HEADS, Model, Pair, causal

from mlxport.errors import UnsupportedError
from mlxport.layouts.generated.generation_step import emit_step


def all_before(query, key, value, past, layer):
    mask = causal(past, query.shape[2])
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def in_windows(query, key, value, past, layer):
    rows = query.shape[2]
    mask = causal(past, rows)
    if layer % 2:
        mask = mask & (torch.arange(past + rows) > torch.arange(past, past + rows)[:, None] - 5)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def in_chunks(query, key, value, past, layer):
    rows = query.shape[2]
    keys, queries = torch.arange(past + rows), torch.arange(past, past + rows)[:, None]
    mask = (keys // 6 == queries // 6) & (keys <= queries) if layer == 0 else causal(past, rows)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def capped(query, key, value, past, layer):
    scores = torch.tanh(query @ key.transpose(2, 3) / math.sqrt(key.shape[-1]) / 2.0) * 2.0
    mask = torch.where(causal(past, query.shape[2]), 0.0, torch.finfo(torch.float32).min)
    return (scores + mask).softmax(-1) @ value


def biased(query, key, value, past, layer):
    rows = query.shape[2]
    slopes = torch.tensor([0.5, 0.25]).view(HEADS, 1, 1)
    bias = slopes * torch.arange(1 - past - rows, 1).view(1, 1, -1)
    mask = bias.masked_fill(~causal(past, rows), torch.finfo(torch.float32).min)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask[None])


def table_of_biases(query, key, value, past, layer):
    rows = query.shape[2]
    table = torch.tensor([1.0, 0.5]).view(HEADS, 1, 1) * torch.arange(-63, 1).view(1, 1, -1)
    total = past + rows
    scores = query @ key.transpose(2, 3) * 0.25 + table[:, :, max(0, table.shape[2] - total) :]
    return scores.masked_fill(~causal(past, rows), torch.finfo(torch.float32).min).softmax(-1) @ value


def of_groups(query, key, value, past, layer):
    """Tokens of one picture would see each other; a text has none, which is known of the array that says so."""
    rows = query.shape[2]
    groups = torch.where(torch.zeros_like(query, dtype=torch.int)[:, 0, :, 0] == 1, 0, -1)
    groups = F.pad(groups, (past, 0), value=-1)
    same = (groups[:, None, past:, None] == groups[:, None, None]) & (groups[:, None, past:, None] >= 0)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=causal(past, rows) | same)


FORMS = {
    "of_groups": (of_groups, {"create_attention_mask(input_ids, cache[0])"}),
    "all_before": (all_before, {"create_attention_mask(input_ids, cache[0])", "KVCache() for _ in self.layers"}),
    "in_windows": (in_windows, {"window_size=5", "[KVCache(), RotatingKVCache(max_size=5)]"}),
    "capped": (capped, {"return_array=True", "masked_scores("}),
    "biased": (biased, {"return_array=True", "scaled_dot_product_attention("}),
    "table_of_biases": (table_of_biases, {"return_array=True", "max(0, 64 - N)"}),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_generate_what_torch_does(name, tmp_path):
    attend, parts = FORMS[name]
    pair = Pair(Model(attend), tmp_path)
    assert all(part in pair.source for part in parts)
    pair.check()


def test_chunks(tmp_path):
    pair = Pair(Model(in_chunks), tmp_path)
    assert "[ChunkedKVCache(chunk_size=6), KVCache()]" in pair.source
    pair.check(batched=False)
    with pytest.raises(ValueError, match="ChunkedKVCache"):
        pair.in_a_batch()


def test_a_chunk_that_is_gone_is_named(tmp_path):
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

    pair = Pair(Model(in_chunks), tmp_path)
    cache = make_prompt_cache(pair.ported)
    for length in (13, 2):
        pair.ported(mx.arange(1, 1 + length)[None], cache=cache)
    trim_prompt_cache(cache, 4)  # to the token before the last of the chunk before
    with pytest.raises(ValueError, match="a chunk that it no longer holds"):
        pair.ported(mx.array([[3]]), cache=cache)


def hides_every_second(query, key, value, past, layer):
    rows = query.shape[2]
    mask = causal(past, rows) & (torch.arange(past + rows) % 2 == 0)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def sees_the_future(query, key, value, past, layer):
    return F.scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize(
    ("attend", "reason"),
    [(hides_every_second, "a form that mlx-lm's caches do not have"), (sees_the_future, "hides nothing")],
)
def test_other_forms_are_refused(attend, reason, tmp_path):
    with pytest.raises(UnsupportedError, match=reason) as refused:
        Pair(Model(attend), tmp_path)
    assert "--no-cache" in refused.value.hint


def test_what_a_models_own_code_raises_is_told_in_a_line():
    def asks_values(x, past):
        for place in (x[..., 0] > 0).nonzero():
            x = x + place.sum()
        return x

    with pytest.raises(UnsupportedError, match="depends on values that are known only when it") as refused:
        emit_step(Model(all_before, asks_values, layers=1).eval())
    assert "\n" not in refused.value.message


def in_two_ways(query, key, value, past, layer):
    return in_windows(query, key, value, past, 1) + all_before(query, key, value, past, layer)


def by_values(query, key, value, past, layer):
    return all_before(query, key, value, past, layer) * (2 if (query > 0).nonzero().shape[0] // 4 > 0 else 1)


@pytest.mark.parametrize(
    ("attend", "why"),
    [
        (in_two_ways, "layer 0 has attentions that see the last 5 tokens and all tokens before"),
        (by_values, r"what it computes \(test_attention_masks.py:\d+\) depends on values that are known only when it"),
    ],
)
def test_refusals_say_what_cannot_be_kept(attend, why):
    with pytest.raises(UnsupportedError, match=why):
        emit_step(Model(attend).eval())
