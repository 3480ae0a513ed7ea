"""Attention that sees keys chosen by an index: prompts shorter and longer than what it chooses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from steps import HEADS, WIDTH, Attention, Model, Pair, causal
from torch import nn
from transformers.cache_utils import DynamicIndexedLayer

from mlxport.graph.rewrite.caches.cached_step import CacheKind

CHOSEN, INDEX_HEADS = 6, 8  # prompts have 2, 9 and 21 tokens


class Indexed(Attention):
    """Beside keys and values, keys of an index; attention sees those with the highest scores."""

    def __init__(self, number: int, added: bool) -> None:
        super().__init__(number, None)
        self.added = added  # whether masks are numbers that are added to scores
        self.index_query = nn.Linear(WIDTH, INDEX_HEADS * 8, bias=False)
        self.index_key = nn.Linear(WIDTH, 8, bias=False)
        self.index_weights = nn.Linear(WIDTH, INDEX_HEADS, bias=False)

    def forward(self, x, cache, past):
        cache.layer_class_to_replicate = DynamicIndexedLayer
        query, key, value = self.qkv(x).view(*x.shape[:2], 3 * HEADS, WIDTH // HEADS).transpose(1, 2).chunk(3, dim=1)
        key, value = cache.update(key, value, self.number)
        mask = causal(past, x.shape[1])[None, None].expand(x.shape[0], -1, -1, -1)
        if self.added:
            mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        places = self.places(x, cache, mask[:, 0])
        hidden = places.new_ones((*x.shape[:2], key.shape[2]), dtype=torch.bool).scatter(-1, places, False)[:, None]
        mask = mask.masked_fill(hidden, torch.finfo(torch.float32).min) if self.added else mask & ~hidden
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return x + output.transpose(1, 2).reshape(x.shape)

    def places(self, x, cache, mask):
        keys = cache.update_indexer(self.index_key(x), self.number)
        scores = self.index_query(x).view(*x.shape[:2], INDEX_HEADS, 8) @ keys.transpose(1, 2)[:, None]
        scores = (self.index_weights(x)[:, :, None] @ scores.relu()).squeeze(2)
        scores = scores + mask if self.added else scores.masked_fill(~mask, float("-inf"))
        return scores.topk(min(CHOSEN, scores.shape[-1]), dim=-1).indices


def test_chosen_keys(tmp_path):
    model = Model(None)
    model.layers = nn.ModuleList([Indexed(0, added=False), Indexed(1, added=True)])
    pair = Pair(model, tmp_path)
    assert pair.caches == [CacheKind(indexes=True)] * 2
    assert "return [CacheList(KVCache(), KVCache()) for _ in self.layers]" in pair.source
    pair.check()
