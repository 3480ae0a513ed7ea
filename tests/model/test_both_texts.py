"""A model with an encoder, called with both texts in a row."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache

from mlxport.distill.teacher_logits import Targets
from mlxport.distill.whole import predict_in_parts
from mlxport.fit.footprint import Footprint
from mlxport.fit.liveness import METAL
from mlxport.model.both_texts import (
    beginnings,
    called_apart,
    called_with_both,
    copied,
    first_written,
    shortened,
    source_size,
    written_size,
)
from mlxport.model.lazy_parameters import LazyModel
from mlxport.model.self_written import sample_sequences
from mlxport.model.tensors import stored_tensors
from mlxport.types import Checkpoint


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.k_proj = nn.Linear(8, 8)
        self.q_proj = nn.Linear(8, 8)

    def __call__(self, x, mask, cache, encoded):
        keys, values = cache.update_and_fetch(x[:, None], x[:, None])
        x = mx.fast.scaled_dot_product_attention(x[:, None], keys, values, scale=1.0, mask=mask)[:, 0]
        scores = self.q_proj(x) @ encoded[0].swapaxes(1, 2)
        return x + mx.softmax(scores, axis=-1) @ encoded[0]


class Model(nn.Module):
    """As small as a port of an encoder and a decoder can be."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.encoder = [nn.Linear(8, 8), nn.Linear(8, 8)]
        self.layers = [Layer(), Layer()]

    def make_cache(self):
        return [CacheList(ArraysCache(size=1), KVCache()) for _ in self.layers]

    def encode(self, input_ids, cache):
        x = self.embed(input_ids)
        for layer in self.encoder:
            x = mx.tanh(layer(x))
        for layer, c in zip(self.layers, cache, strict=True):
            c[0][0] = layer.k_proj(x)

    def __call__(self, decoder_input_ids, cache=None, input_ids=None):
        if cache is None:
            cache = self.make_cache()
            self.encode(input_ids, cache)
        mask = create_attention_mask(decoder_input_ids, cache[0][1])
        x = self.embed(decoder_input_ids)
        for layer, c in zip(self.layers, cache, strict=True):
            x = layer(x, mask, c[1], c[0])
        return self.embed.as_linear(x)


@pytest.fixture
def model():
    mx.random.seed(0)
    return Model()


IDS = mx.array([[1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]])


def test_the_first_half_is_read_and_the_second_written(model):
    wanted = model(IDS[:, 4:], input_ids=IDS[:, :4])
    assert (source_size(7), written_size(model, 7), written_size(nn.Linear(1, 1), 7)) == (4, 3, 7)
    both = called_with_both(model)
    assert mx.allclose(both(IDS), wanted, atol=1e-6)
    assert mx.allclose(both(IDS[:, 4:], input_ids=IDS[:, :4]), wanted, atol=1e-6)
    cache = both.make_cache()
    both.encode(IDS[:, :4], cache)
    steps = [both(IDS[:, place : place + 1], cache) for place in range(4, 7)]
    assert mx.allclose(mx.concatenate(steps, axis=1), wanted, atol=1e-5)


def test_it_writes_a_text_of_what_it_reads(model):
    ids = copied(IDS, 9)
    assert ids.tolist() == [[1, 2, 3, 4, 9, 1, 2], [7, 6, 5, 4, 9, 7, 6]]
    first = beginnings(IDS, 9)
    written = sample_sequences(model, first, 9, mx.random.key(0))
    assert written.shape == (2, 9) and written[:, :5].tolist() == first.tolist()
    apart = sample_sequences(model, first, 9, mx.random.key(0), together=1)
    assert apart.shape == (2, 9) and apart[:, :5].tolist() == first.tolist()


def test_matrices_that_read_the_encoder_are_called_from_outside_of_their_layers(model):
    assert called_apart(called_with_both(model), IDS) == ["layers.0.k_proj", "layers.1.k_proj"]


def test_logits_are_the_same_with_one_layer_in_memory(model, tmp_path):
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    ids = mx.random.randint(0, 16, (5, 7), key=mx.random.key(1))
    wanted = model(ids[:, 4:], input_ids=ids[:, :4])
    lazy, parts = LazyModel(called_with_both(model), stored_tensors(tmp_path)), Targets(tmp_path / "parts")
    predict_in_parts(lazy, ids, parts, lambda _: None)
    logs, places = parts.load(range(5))
    assert mx.allclose(logs, mx.take_along_axis(nn.log_softmax(wanted, axis=-1), places, axis=-1), atol=1e-5)


def test_a_row_is_cut_in_both_of_its_halves(model):
    assert shortened(nn.Linear(1, 1), IDS[0], 3).tolist() == [1, 2, 3]
    assert shortened(model, IDS[0], 4).tolist() == [1, 2, 5, 6]
    assert shortened(model, IDS[0], 9).tolist() == IDS[0].tolist()


def test_the_token_that_texts_begin_with(tmp_path):
    checkpoint = Checkpoint(tmp_path, {"decoder_start_token_id": 5}, {}, ())
    assert first_written(checkpoint) == 5
    (tmp_path / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 6}))
    assert first_written(checkpoint) == 6


def test_memory_holds_what_was_read_and_what_was_written(model):
    need = Footprint(model, METAL).at(50)
    assert need.cache == 2 * (50 * 8 * 4 + 2 * 256 * 8 * 4) and need.peak > need.cache
