"""What ``convert`` promises of the rest of a model: its key-value cache, and activations that float16 can hold."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers

from checkpoints import save, weights, write_llama, write_side_files
from mlxport import convert, generate
from mlxport.errors import NumericsError, UsageError


def large(folder: Path, up: float, down: float, dtype: str = "F32") -> Path:
    """A llama whose second block multiplies by ``up`` and ``down``: weights that float16 holds, products or not."""
    write_side_files(folder)
    arrays = weights()
    arrays["model.layers.1.mlp.up_proj.weight"] *= up
    arrays["model.layers.1.mlp.down_proj.weight"] *= down
    assert max(float(np.abs(array).max()) for array in arrays.values()) < 30000
    save(folder / "model.safetensors", arrays, dtype)
    return folder


def logits(folder: Path) -> np.ndarray:
    from mlx_lm.utils import load_model

    return np.array(load_model(folder)[0](mx.array([[5, 9, 70, 3, 44]])).astype(mx.float32))


@pytest.mark.parametrize("quantize", [None, 8])
def test_activations_beyond_float16_are_refused_by_module(tmp_path, quantize):
    source = large(tmp_path / "source", 30, 3000)
    with pytest.raises(NumericsError, match=r"overflow float16 \(65504\): output of model.layers.1.mlp.down_proj") as e:
        convert(source, tmp_path / "out", dtype="float16", quantize=quantize, verify="none")
    assert "--dtype bfloat16" in e.value.hint and "--allow-overflow" in e.value.hint
    assert not (tmp_path / "out").exists()
    report = convert(source, tmp_path / "out", dtype="bfloat16", quantize=quantize)
    assert report.parity is not None and report.parity.passed and report.activations is None
    assert np.isfinite(logits(tmp_path / "out")).all()


def test_what_was_refused_is_what_float16_would_have_computed(tmp_path):
    source = large(tmp_path / "source", 30, 3000)
    report = convert(source, tmp_path / "out", dtype="float16", allow_overflow=True)
    assert not np.isfinite(logits(tmp_path / "out")).all()
    assert report.activations is not None
    assert report.activations.largest is not None and report.activations.largest.value > 65504
    recorded = json.loads((tmp_path / "out" / "mlxport.json").read_text())["activations"]
    assert [entry["module"] for entry in recorded["beyond_float16"]][0] == "model.layers.1.mlp.down_proj"
    assert report.to_json()["activations"] == recorded


def test_what_is_between_modules_counts_too(tmp_path):
    """The product of gate and up is no module's output, and far larger than what the next one makes of it."""
    source = large(tmp_path / "source", 20000, 1e-4)
    with pytest.raises(NumericsError, match="input of model.layers.1.mlp.down_proj"):
        convert(source, tmp_path / "out", dtype="float16", verify="none")


def test_near_the_limit_there_is_a_warning(tmp_path, mlxport):
    source = large(tmp_path / "source", 30, 80)
    result = mlxport("convert", source, tmp_path / "out", "--dtype", "float16", "--verify", "none")
    assert result.code == 0 and "come near float16's limit" in result.err
    assert "output of model.layers.1.mlp.down_proj" in result.err and "--dtype bfloat16" in result.err


def test_an_original_in_float16_is_warned_of_only(tmp_path, mlxport):
    source = large(tmp_path / "source", 30, 3000, "F16")
    result = mlxport("convert", source, tmp_path / "out", "--dtype", "float16")
    assert result.code == 0 and "overflow float16" in result.err


def test_an_ordinary_model_is_not_troubled(tmp_path, mlxport):
    result = mlxport("convert", write_llama(tmp_path / "source"), tmp_path / "out", "--dtype", "float16", "--json")
    found = json.loads(result.out)["activations"]
    assert result.code == 0 and "warning" not in result.err
    assert found["beyond_float16"] == found["near_float16"] == [] and 0 < found["largest"]["value"] < 65504


SIZES = dict(
    vocab_size=320, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=None,
)  # fmt: skip
OTHERS = {
    "experts": lambda: transformers.Qwen3MoeConfig(
        **SIZES, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2, head_dim=64
    ),
    "tied, windows": lambda: transformers.Gemma3TextConfig(
        **SIZES, head_dim=64, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "recurrent": lambda: transformers.MambaConfig(vocab_size=320, hidden_size=64, num_hidden_layers=2, state_size=8),
}


@pytest.fixture
def other(tmp_path):
    def make(name: str, scale: float = 1.0) -> Path:
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(OTHERS[name]()).to(torch.float32)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "layers.1." in key and "proj" in key and parameter.ndim > 1:
                    parameter.mul_(scale)
        assert max(float(parameter.detach().abs().max()) for parameter in model.parameters()) < 30000
        folder = tmp_path / "source"
        write_side_files(folder)
        model.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("name", OTHERS)
def test_overflow_in_other_architectures(other, tmp_path, name):
    source = other(name, 4000)
    with pytest.raises(NumericsError, match=r"overflow float16.*layers\.1\."):
        convert(source, tmp_path / "out", dtype="float16", verify="none")
    source = other(name)
    report = convert(source, tmp_path / "out", dtype="float16", verify="none")
    assert report.activations is not None and not report.activations.beyond


def test_kv_bits_are_recorded_and_used(tmp_path, mlxport):
    source = other_llama(tmp_path / "source")
    options = ["--kv-bits", "2", "--kv-group-size", "32", "--quantized-kv-start", "0"]
    assert mlxport("convert", source, tmp_path / "out", "--verify", "none", *options).code == 0
    assert mlxport("convert", source, tmp_path / "plain", "--verify", "none").code == 0
    record = json.loads((tmp_path / "out" / "mlxport.json").read_text())
    assert record["generation"] == {"kv_bits": 2, "kv_group_size": 32, "quantized_kv_start": 0}
    assert "generation" not in json.loads((tmp_path / "plain" / "mlxport.json").read_text())

    def answer(folder: str, *more: str) -> list[int]:
        arguments = ["-p", "hello there", "-m", "24", "--ignore-chat-template", "--json", *more]
        return json.loads(mlxport("generate", tmp_path / folder, *arguments).out)["tokens"]

    assert answer("out") == answer("plain", *options) != answer("plain")
    assert answer("out", "--kv-bits", "none") == answer("plain")


def other_llama(folder: Path) -> Path:
    """A llama with heads that the least group size divides."""
    write_side_files(folder, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    arrays = {name: array * (3 if "proj" in name else 1) for name, array in weights().items()}
    save(folder / "model.safetensors", arrays, "F32")
    return folder


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--kv-bits", "8"], "keys or values of a head have 16 numbers"),
        (["--kv-bits", "7"], "--kv-bits 7 does not exist"),
        (["--kv-group-size", "64"], "has no effect without --kv-bits"),
        (["--kv-bits", "8", "--layout", "generated", "--no-cache"], "the generated one has no key-value cache"),
    ],
)
def test_kv_bits_that_cannot_be(tmp_path, source, mlxport, options, part):
    result = mlxport("convert", source, tmp_path / "out", *options)
    assert result.code == 2 and part in result.err and "hint: " in result.err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_a_recurrent_model_has_no_such_cache(other, tmp_path):
    with pytest.raises(UsageError, match="has no cache that mlx-lm can quantize"):
        convert(other("recurrent"), tmp_path / "out", kv_bits=8, verify="none")


def test_windows_keep_their_cache_and_it_is_said(other, tmp_path):
    report = convert(other("tied, windows"), tmp_path / "out", kv_bits=8, quantized_kv_start=0, verify="none")
    assert any("1 of 2 caches stay unquantized" in note for note in report.notes)
    assert generate(tmp_path / "out", "a text that is longer than the window", max_tokens=4).generation_tokens > 0
