"""What a decoder asks of an encoder's output is kept in caches, whatever its attention is spelled like."""

from __future__ import annotations

import math
from types import SimpleNamespace

import mlx.core as mx
import pytest
import torch
import torch.nn.functional as F
from mlx_lm.generate import generate_step
from steps import HEADS, STEPS, VOCABULARY, WIDTH, Pair, causal
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

START, SOURCES = 1, [[5, 9, 2, 7, 11, 3, 8], [6, 2]]
LOWEST = torch.finfo(torch.float32).min


def in_heads(x):
    return x.view(*x.shape[:2], -1, WIDTH // HEADS).transpose(1, 2)


def plain(query, key, value, mask):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def heads_in_one_axis(query, key, value, mask):
    batch, heads, length, width = query.shape
    query, key, value = (item.reshape(batch * heads, -1, width) for item in (query, key, value))
    scores = torch.bmm(query * width**-0.5, key.transpose(1, 2))
    if mask is not None:
        scores = scores + torch.where(mask, 0.0, LOWEST)
    return torch.bmm(scores.softmax(-1), value).view(batch, heads, length, width)


def capped_and_masked(query, key, value, mask):
    """Scores with a soft cap, and a mask that is written where all keys are seen, too."""
    scores = 4 * torch.tanh(query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) / 4)
    if mask is None:
        rows = torch.arange(query.shape[2])[None, None, :, None] >= 0
        mask = rows.expand(query.shape[0], 1, query.shape[2], key.shape[2])
    return (scores + torch.where(mask, 0.0, LOWEST)).softmax(-1) @ value


class Encoder(nn.Module):
    def __init__(self, strict):
        super().__init__()
        self.tokens, self.mix, self.strict = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH), strict

    def forward(self, input_ids, attention_mask=None, return_dict=True, use_cache=None):
        if self.strict and (use_cache or attention_mask is None):
            raise ValueError("an encoder keeps nothing, and is told what is no padding")
        return BaseModelOutput(torch.tanh(self.mix(self.tokens(input_ids))))


class Layer(nn.Module):
    def __init__(self, number, attend):
        super().__init__()
        self.number, self.attend = number, attend
        self.qkv, self.q, self.kv = (nn.Linear(WIDTH, count * WIDTH, bias=False) for count in (3, 1, 2))

    def forward(self, x, read, cache, mask):
        query, key, value = in_heads(self.qkv(x)).chunk(3, dim=1)
        if cache is not None:
            key, value = cache.self_attention_cache.update(key, value, self.number)
        x = x + self.attend(query, key, value, mask).transpose(1, 2).reshape(x.shape)
        key, value = in_heads(self.kv(read)).chunk(2, dim=1)
        if cache is not None:
            key, value = cache.cross_attention_cache.update(key, value, self.number)
        return x + self.attend(in_heads(self.q(x)), key, value, None).transpose(1, 2).reshape(x.shape)


class Reader(nn.Module):
    """An encoder without layers, and a decoder of two.

    Args:
        attend: ``(query, key, value, mask)`` to what the values give.
        strict: Whether the encoder wants to be called as ``generate`` calls it.
        one_by_one: Whether new tokens, where there is a cache, see each other: it is made for one.
    """

    def __init__(self, attend, strict=False, one_by_one=False):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.one_by_one = Encoder(strict), one_by_one
        self.layers = nn.ModuleList(Layer(number, attend) for number in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        text = SimpleNamespace(vocab_size=VOCABULARY)
        self.config = SimpleNamespace(is_encoder_decoder=True, get_text_config=lambda: text)

    def get_encoder(self):
        return self.encoder

    def forward(self, input_ids=None, attention_mask=None, decoder_input_ids=None, past_key_values=None,
                use_cache=True, encoder_outputs=None):  # fmt: skip
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, use_cache=use_cache)
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        past = past_key_values.get_seq_length() if use_cache else 0
        mask = None if use_cache and self.one_by_one else causal(past, decoder_input_ids.shape[1])
        x = self.encoder.tokens(decoder_input_ids)
        for layer in self.layers:
            x = layer(x, encoder_outputs.last_hidden_state, past_key_values if use_cache else None, mask)
        return Seq2SeqLMOutput(logits=self.head(x), past_key_values=past_key_values)


class Reading(Pair):
    def wanted(self, source):
        ids, tokens = torch.tensor([source]), [START]
        with torch.no_grad():
            for _ in range(STEPS):
                text = dict(decoder_input_ids=torch.tensor([tokens]), attention_mask=torch.ones_like(ids))
                tokens.append(int(self.model(input_ids=ids, use_cache=False, **text).logits[0, -1].argmax()))
        return tokens[1:]

    def generated(self, source):
        cache = self.ported.make_cache()
        self.ported.encode(mx.array([source]), cache)
        steps = generate_step(mx.array([START]), self.ported, max_tokens=STEPS, prompt_cache=cache)
        return [int(token) for token, _ in steps]


@pytest.mark.parametrize(
    "model",
    [
        lambda: Reader(plain, strict=True),
        lambda: Reader(heads_in_one_axis, one_by_one=True),
        lambda: Reader(capped_and_masked),
    ],
    ids=["called as generate calls it", "heads in one axis, no mask", "masks that hide nothing"],
)
def test_a_text_is_read_once_and_written_in_steps(tmp_path, model):
    pair = Reading(model(), tmp_path)
    wanted = [pair.wanted(source) for source in SOURCES]
    assert len({tuple(tokens) for tokens in wanted}) == 2
    cache = pair.ported.make_cache()
    pair.ported.encode(mx.array(SOURCES[:1]), cache)
    assert {array.shape[0] for layer in cache for array in layer[0].cache} == {1}  # rows of a batch, not heads
    assert [pair.generated(source) for source in SOURCES] == wanted
    whole = pair.ported(mx.array([[START, *wanted[0]]]), input_ids=mx.array([SOURCES[0]]))
    assert [int(token) for token in whole[0, :-1].argmax(-1)] == wanted[0]
