"""Quantized caches of models with an encoder, and of layers that keep states beside keys and values."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, QuantizedKVCache, RotatingKVCache

import mlxport
from mlxport.errors import QuantizationError
from mlxport.run.kv import KVQuant, prompt_cache
from sequence_models import CONFIGS, save_sequence_model


class Layered:
    """A model of which only the caches are asked for."""

    def __init__(self, *caches):
        self.layers, self.caches = caches, list(caches)

    def make_cache(self):
        return self.caches


def test_of_a_list_what_can_be_quantized_is():
    from mlx_lm.generate import maybe_quantize_kv_cache

    given = [CacheList(ArraysCache(2), KVCache()), CacheList(ArraysCache(1)), CacheList(RotatingKVCache(8), KVCache())]
    caches = prompt_cache(Layered(*given), KVQuant(8, 32, 0))
    keys = mx.random.normal((1, 2, 5, 32))
    for cache in caches:
        for part in cache.caches:
            if hasattr(part, "update_and_fetch"):
                part.update_and_fetch(keys, keys)
    for start, kinds in ((6, [KVCache, KVCache]), (5, [QuantizedKVCache, QuantizedKVCache])):
        maybe_quantize_kv_cache(caches, start, 32, 8)
        assert [type(caches[place][1]) for place in (0, 2)] == kinds
    assert isinstance(caches[0][0], ArraysCache) and type(caches[2][0]) is RotatingKVCache
    before = [cache.caches[1] for cache in (caches[0], caches[2])]
    maybe_quantize_kv_cache(caches, 0, 32, 8)  # once
    assert all(cache[1] is part for cache, part in zip((caches[0], caches[2]), before, strict=True))
    found = mx.dequantize(*caches[0][1].state[0], group_size=32, bits=8)[:, :, :5]
    np.testing.assert_allclose(found, keys, atol=0.03)


@pytest.fixture
def converted(tmp_path, monkeypatch):
    def convert(name, **wide):
        config = CONFIGS[name]
        monkeypatch.setitem(CONFIGS, name, lambda: config(**wide))
        save_sequence_model(name, tmp_path / "hf")
        options = dict(kv_bits=8, kv_group_size=32, quantized_kv_start=0)
        mlxport.convert(tmp_path / "hf", tmp_path / "mlx", verify="none", quiet=True, **options)
        return tmp_path / "mlx"

    return convert


def test_a_decoder_writes_on_a_quantized_cache(converted, monkeypatch):
    folder, made = converted("bart", d_model=128), []
    quantize = KVCache.to_quantized

    def counted(self, *args, **kwargs):
        made.append(self.offset if kwargs else None)
        return quantize(self, *args, **kwargs)

    plain = mlxport.generate(folder, "w5 w9 w30 w7", max_tokens=12, kv_bits="none")
    monkeypatch.setattr(KVCache, "to_quantized", counted)
    text = mlxport.generate(folder, "w5 w9 w30 w7", max_tokens=12)
    assert [offset for offset in made if offset is not None] == [1, 1] * 2  # of two layers, once tried and once used
    assert text.tokens == plain.tokens and len(text.tokens) > 4
    with pytest.warns(UserWarning, match="a search with 3 beams keeps a plain cache"):
        mlxport.generate(folder, "w5 w9 w30 w7", max_tokens=12, num_beams=3)


def test_a_decoder_that_measures_its_keys_is_refused(converted):
    with pytest.raises(QuantizationError, match="attention of t5 cannot read a quantized cache"):
        converted("t5", d_kv=32)


def test_a_plan_counts_what_is_written_as_quantized(tmp_path, monkeypatch):
    config = CONFIGS["bart"]
    monkeypatch.setitem(CONFIGS, "bart", lambda: config(d_model=128, max_position_embeddings=9000))
    save_sequence_model("bart", tmp_path)
    plan = mlxport.plan_for(tmp_path, device="M2 8GB", context=8192, kv_bits=8, kv_group_size=32)
    row = next(row for row in plan.rows if row.quantize == "4")
    read, written = 2 * 2 * 8192 * 128 * 2, 2 * 2 * 8192 * 128 * (1 + 4 / 32)  # a scale and a bias for each group
    assert row.cache_bytes == read + written
