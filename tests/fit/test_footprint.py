"""Needs beside what real runs of mlx-lm take, in a process of their own."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from models import CONFIGS, build, measured_peaks, nbytes, save

from mlxport.errors import UnsupportedError
from mlxport.fit.footprint import Footprint
from mlxport.fit.liveness import CPU, METAL

TOLERANCE = 0.1
SHORT = [{"context": 200}, {"context": 1000}, {"context": 3000}]
# The CPU has no quantized kernels for experts in half precision, and none at all for those without quantization.
RUNS = {
    "llama": SHORT,
    "sliding window": SHORT,
    "experts": SHORT,
    "latent cache": SHORT,
    "wide heads": [{"context": 5500, "kv_bits": 8}, {"context": 5500, "kv_bits": 4}],
    "100 M": [{"context": 64}, {"context": 700}],
}


def predicted(name: str, run: dict[str, int], backend=CPU) -> int:
    model = build(name)
    return nbytes(model) + Footprint(model, backend, run.get("kv_bits")).at(run["context"]).peak


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", RUNS)
def test_the_peak_is_that_of_a_real_run(tmp_path, name):
    measured = measured_peaks(save(name, tmp_path / "model"), RUNS[name])
    for run, real in zip(RUNS[name], measured, strict=True):
        assert predicted(name, run) == pytest.approx(real, rel=TOLERANCE), run


@pytest.mark.cpu_only
@pytest.mark.parametrize(("name", "context"), [("llama", 1000), ("100 M", 4)])
def test_quantized_weights_change_nothing_but_their_size(tmp_path, name, context):
    (measured,) = measured_peaks(save(name, tmp_path / "model", mx.bfloat16, bits=4), [{"context": context}])
    model = build(name, mx.bfloat16)
    need = Footprint(model, CPU).at(context).peak
    nn.quantize(model, group_size=64, bits=4)
    assert nbytes(model) + need == pytest.approx(measured, rel=TOLERANCE)


def test_the_peak_that_a_mac_reports():
    """Mistral 7B in 4 bits on an M2 Ultra: 9.111 GB with 33,898 tokens (github.com/ml-explore/mlx-lm/pull/40)."""
    sizes = dict(hidden_size=4096, num_hidden_layers=32, intermediate_size=14336, num_attention_heads=32,
                 num_key_value_heads=8, vocab_size=32768)  # fmt: skip
    model = build("llama", mx.bfloat16, **sizes)
    need = Footprint(model, METAL).at(33_898 + 100).peak
    nn.quantize(model, group_size=64, bits=4)
    assert nbytes(model) + need == pytest.approx(9.111e9, rel=0.05)


def cache(name: str, context: int, kv_bits: int | None = None, **changes: object) -> int:
    return Footprint(build(name, mx.bfloat16, **changes), METAL, kv_bits).at(context).cache


def test_the_cache_grows_by_steps_of_the_runtime():
    row = 2 * 2 * 16 * 2 * 2  # layers, heads, size, keys and values, bytes
    assert cache("llama", 256) == 256 * row == cache("llama", 100)
    assert cache("llama", 257) == 512 * row
    assert cache("llama", 10_000) == 10_240 * row


def test_windows_stop_growing():
    row = 2 * 16 * 2 * 2
    assert cache("sliding window", 8000) == (2 * 8192 + 4 * 128) * row


def test_latent_caches_are_small():
    assert cache("latent cache", 1000) == 2 * 1024 * (32 + 16) * 2


def test_states_have_one_size():
    assert cache("state space", 100) == cache("state space", 5000) > 0


def test_a_quantized_cache():
    plain, wide = cache("wide heads", 6000), cache("wide heads", 6000, 8)
    assert wide == plain * (8 + 0.5) / 16
    assert cache("wide heads", 4000, 8) == cache("wide heads", 4000)  # mlx-lm begins at 5,000 tokens


@pytest.mark.parametrize(("name", "model_type"), [("sliding window", "gemma3_text"), ("llama", "llama")])
def test_a_cache_that_cannot_be_quantized_is_an_error(name, model_type):
    said = f"{model_type} cannot be planned for with a cache of 4 bits: .* not a multiple of the group size 64"
    with pytest.raises(UnsupportedError, match=said) as caught:
        cache(name, 6000, 4)
    assert "--kv-bits" in caught.value.hint


def test_experts_and_tables_are_read_in_part():
    model = build("experts")
    shares = Footprint(model, METAL).read_shares(100)
    assert shares["model.layers.0.mlp.switch_mlp.up_proj.weight"] == 2 / 8
    assert shares["model.embed_tokens.weight"] == pytest.approx(1 / 96)
    assert shares["lm_head.weight"] == shares["model.layers.1.self_attn.q_proj.weight"] == 1
    tied = Footprint(build("llama", tie_word_embeddings=True), METAL).read_shares(100)
    assert tied["model.embed_tokens.weight"] == 1
    assert {name: share for name, share in tied.items() if share != 1} == {}


def test_nothing_is_evaluated():
    model = build("llama", hidden_size=1 << 16, intermediate_size=1 << 18, num_hidden_layers=4)
    assert nbytes(model) > 200e9
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    assert Footprint(model, METAL).at(4096).peak > 0
    assert mx.get_peak_memory() - before < 100e6


@pytest.mark.parametrize("name", CONFIGS)
def test_needs_grow_with_the_context(name):
    footprint = Footprint(build(name, mx.bfloat16), METAL)
    needs = [footprint.at(context) for context in (64, 500, 4000, 16000)]
    assert [need.peak for need in needs] == sorted(need.peak for need in needs)
    assert all(0 < need.cache < need.peak for need in needs)
