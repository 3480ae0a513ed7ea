from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest
import torch
from verify_models import AGREEING, SMALL, THETA, convert, dequantized, edit_config, edit_weights, to_fp8

from checkpoints import write_tokenizer
from mlxport.errors import UnsupportedError, UsageError, VerificationError
from mlxport.parity import verify
from mlxport.parity.full import SAME_WEIGHTS
from mlxport.quant import MODES, make_spec
from mlxport.transform import NotInvertible

TOKENS = 48
Q4 = {"bits": 4, "group_size": 32}
SETTINGS = [make_spec(mode.name, bits).as_config() for mode in MODES.values() for bits in mode.bits]


def not_invertible(_):
    raise NotInvertible("a test's layout")


def check(made, **options):
    return verify(made.folder, made.checkpoint, invert=made.invert, tokens=TOKENS, **options)


@pytest.mark.parametrize("mode", ["full", "layerwise"])
@pytest.mark.parametrize("name", AGREEING)
def test_equal_weights_agree(converted, name, mode):
    report = check(converted(name), mode=mode)
    assert report.passed, report.failure_message()
    assert report.mode == mode
    (comparison,) = report.comparisons
    assert comparison.row == ("near variant" if name == "gemma" else "same weights")
    assert comparison.relative < (2e-4 if name == "gemma" else 1e-5)  # mlx-lm's gemma has another gelu
    assert report.weights is not None and report.weights.relative == 0
    assert bool(report.layers) == (mode == "layerwise")
    assert all(layer.relative < 2e-4 for layer in report.layers)


def test_the_text_ends_where_mlx_lm_attends_to_other_tokens(converted):
    made = converted("starcoder2")  # its window of 9 tokens is one that mlx-lm ignores
    assert not check(made).passed
    report = verify(made.folder, made.checkpoint, invert=made.invert)
    assert report.passed and report.tokens == 9 + 4
    assert any("9 tokens: beyond" in note for note in report.notes)


@pytest.mark.parametrize("mode", ["full", "layerwise"])
@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "qwen2_moe"])
def test_quantized_weights_agree_with_themselves_in_torch(converted, name, mode):
    report = check(converted(name, quantize=Q4), mode=mode)
    assert report.passed, report.failure_message()
    original, same = report.comparisons
    assert (original.row, same.name, report.bits) == ("4 bits", SAME_WEIGHTS, 4)
    assert same.relative < 1e-5 < original.relative


@pytest.mark.parametrize("quantize", SETTINGS, ids=lambda q: f"{q['mode']}{q['bits']}")
def test_every_mode_passes(converted, quantize):
    report = check(converted("llama", quantize=quantize), mode="full")
    assert report.passed, report.failure_message()
    assert report.comparisons[1].relative < 1e-5


@pytest.mark.parametrize("mode", ["full", "layerwise"])
def test_rounded_weights_are_held_against_the_same_rounding(converted, mode):
    report = check(converted("llama", dtype=mx.bfloat16), mode=mode)
    assert report.passed, report.failure_message()
    original, same = report.comparisons
    assert (original.row, report.dtype) == ("bfloat16", "bfloat16")
    assert same.relative < 1e-5 < original.relative


@pytest.mark.parametrize("mode", ["full", "layerwise"])
def test_without_an_inverse_modules_are_compared(converted, mode):
    made = converted("llama", quantize=Q4)
    report = verify(made.folder, made.checkpoint, mode=mode, tokens=TOKENS, invert=not_invertible)
    assert report.passed and report.weights is None
    assert report.comparisons[1].name.startswith("quantized modules")
    assert any("a test's layout" in note for note in report.notes)


@pytest.mark.parametrize("quantize", [None, Q4], ids=["plain", "quantized"])
@pytest.mark.parametrize("name", ["qwen2_moe", "mixtral"])
def test_large_stacks_of_experts_are_read_one_by_one(converted, monkeypatch, name, quantize):
    import mlxport.parity.stored as stored

    monkeypatch.setattr(stored, "GROUP_BYTES", 0)
    monkeypatch.setattr(stored.StoredLayout, "_array", lambda self, name: pytest.fail(f"{name} as a whole"))
    report = check(converted(name, quantize=quantize), mode="layerwise")
    assert report.passed, report.failure_message()
    assert report.comparisons[-1].row == "same weights" and report.weights is not None


@pytest.mark.parametrize("name", ["llama_tied", "gemma", "qwen2_moe", "mixtral"])
def test_layerwise_never_holds_a_matrix_of_the_original(converted, monkeypatch, name):
    from mlxport.parity.lazy_reference import Source

    whole = Source.whole

    def small_only(self):
        assert len(self.shape) == 1 or self.shape[0] <= 4, self.shape  # norms, biases, routers
        return whole(self)

    monkeypatch.setattr(Source, "whole", small_only)
    assert check(converted(name), mode="layerwise").passed


def test_what_is_too_large_to_rearrange_is_said(converted, monkeypatch):
    import mlxport.parity.stored as stored

    monkeypatch.setattr(stored, "GROUP_BYTES", 0)
    report = check(converted("gpt2"), mode="layerwise")
    assert report.passed and report.weights is None
    assert any("too large to rearrange" in note for note in report.notes)


def test_without_an_inverse_rounding_is_repeated_in_torch(converted):
    made = converted("llama", dtype=mx.float16)
    report = verify(made.folder, made.checkpoint, mode="full", tokens=TOKENS, invert=not_invertible)
    assert report.passed and report.comparisons[1].relative < 1e-5


def test_bf16_to_bf16_is_exact(sources, tmp_path):
    import torch

    made = convert(sources("llama", dtype=torch.bfloat16), tmp_path / "output")
    report = check(made, mode="full")
    assert report.passed and [c.row for c in report.comparisons] == ["same weights"]


@pytest.mark.parametrize("mode", ["full", "layerwise"])
def test_a_model_that_cannot_generate_fails(converted, monkeypatch, mode):
    """mlx-lm's cache of another kind of layer: one pass agrees, single steps do not."""
    from mlx_lm.models import llama
    from mlx_lm.models.cache import RotatingKVCache

    made = converted("llama")
    monkeypatch.setattr(
        llama.Model, "make_cache", lambda self: [RotatingKVCache(max_size=4) for _ in self.layers], raising=False
    )
    report = check(made, mode=mode)
    assert not report.passed
    assert [c.passed for c in report.comparisons] == [True, False]
    assert "token by token" in report.failure_message()


@pytest.mark.parametrize("mode", ["full", "layerwise"])
def test_composite_configs_have_a_reference(tmp_path, mode):
    import transformers

    from mlxport import convert as whole
    from mlxport.source import open_checkpoint

    text = {**SMALL, **THETA, "pad_token_id": None, "layer_types": ["linear_attention", "full_attention"]}
    tower = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "num_position_embeddings": 16}
    config = transformers.Qwen3_5Config(
        text_config={**text, "head_dim": 16, "tie_word_embeddings": False},
        vision_config={**tower, "out_hidden_size": SMALL["hidden_size"]},
    )
    torch.manual_seed(0)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "source")
    write_tokenizer(tmp_path / "source", SMALL["vocab_size"])
    whole(tmp_path / "source", tmp_path / "out", verify="none", text_only=True)
    report = verify(tmp_path / "out", open_checkpoint(tmp_path / "source"), mode=mode)
    assert report.passed, report.failure_message()


def test_the_mode_follows_the_memory_limit(converted):
    made = converted("llama")
    assert check(made, memory_limit=10**10).mode == "full"
    assert check(made, memory_limit=10**6).mode == "layerwise"


def test_the_report_is_json(converted):
    report = check(converted("llama", quantize=Q4), mode="full")
    record = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert record["comparisons"][0]["thresholds"]
    assert record["passed"] is True
    assert SAME_WEIGHTS in report.summary()


def test_an_output_that_mlx_lm_cannot_load_is_refused(converted):
    made = converted("llama", quantize=Q4)
    wrong = {"group_size": 32, "bits": 4, "model.layers.0.mlp.up_proj": {"group_size": 32, "bits": 8}}
    edit_config(made.folder, quantization=wrong)
    with pytest.raises(VerificationError, match="mlx-lm cannot load the output") as caught:
        check(made)
    assert caught.value.exit_code == 3


def test_nan_fails_and_is_said(converted):
    made = converted("llama")
    edit_weights(made.folder, lambda w: w.update({"model.norm.weight": w["model.norm.weight"] * float("nan")}))
    report = check(made, mode="full")
    assert not report.passed
    assert "NaN or inf" in report.failure_message()
    json.dumps(report.to_json(), allow_nan=False)


def test_a_model_that_transformers_lacks_has_no_reference(converted):
    made = converted("llama")
    path = made.checkpoint.root.parent / "unknown"
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    from dataclasses import replace

    with pytest.raises(UnsupportedError, match="cannot read its config"):
        verify(made.folder, replace(made.checkpoint, root=path), invert=made.invert)


def test_a_quantized_source_has_no_float32_reference(converted):
    from dataclasses import replace

    made = converted("llama")
    config = {**made.checkpoint.config, "quantization_config": {"quant_method": "awq"}}
    with pytest.raises(UnsupportedError, match=r"is quantized \(awq\)"):
        check(SimpleNamespace(**{**vars(made), "checkpoint": replace(made.checkpoint, config=config)}))


@pytest.mark.parametrize("mode", ["full", "layerwise"])
def test_an_fp8_source_is_scaled_for_the_reference(sources, tmp_path, mode):
    checkpoint = to_fp8(sources("deepseek_v3"), tmp_path / "source", block=128)  # what mlx-lm supports
    plain = dequantized(checkpoint, tmp_path / "plain")
    made = convert(plain, tmp_path / "output", dtype=mx.bfloat16)
    report = verify(made.folder, checkpoint, mode=mode, tokens=TOKENS, invert=not_invertible)
    assert report.passed, report.failure_message()
    assert report.comparisons[0].row == "bfloat16"
    assert len(report.comparisons) == 1 or report.comparisons[1].relative < 1e-5


@pytest.mark.parametrize("rows", [(0, 64), (5, 60), (48, 64), (0, 1)])
def test_fp8_blocks_by_rows(sources, tmp_path, rows):
    from mlxport.parity.fp8 import source_weights

    checkpoint = to_fp8(sources("llama"), tmp_path / "source")
    weights = source_weights(checkpoint)
    name = "model.layers.0.self_attn.q_proj.weight"
    original = sources("llama")
    whole = weights.rows(name)
    assert name in weights and "model.norm.weight" not in weights
    assert whole[slice(*rows)].equal(weights.rows(name, *rows))
    from mlxport.parity.torch_rows import read_tensor

    expected = read_tensor(original.tensors[name])
    assert ((whole - expected).norm() / expected.norm()).item() < 0.04


def test_tensors_of_another_layout_are_noted(converted):
    made = converted("llama")

    def other(outputs):
        raise KeyError(next(iter(outputs)))

    report = verify(made.folder, made.checkpoint, mode="full", tokens=TOKENS, invert=other)
    assert report.passed and any("another layout than mlx-lm writes" in note for note in report.notes)


def test_missing_weights_are_not_made_up(converted):
    from dataclasses import replace

    made = converted("llama")
    tensors = {k: v for k, v in made.checkpoint.tensors.items() if "layers.1.mlp.up_proj" not in k}
    for mode in ("full", "layerwise"):
        with pytest.raises(UnsupportedError, match=r"layers\.1\.mlp\.up_proj"):
            verify(made.folder, replace(made.checkpoint, tensors=tensors), mode=mode, invert=made.invert)


def test_an_unknown_mode_is_wrong_usage(converted):
    with pytest.raises(UsageError, match="'quick'"):
        check(converted("llama"), mode="quick")


def test_imports_nothing_heavy():
    code = (
        "import sys, mlxport.parity as v\n"
        "assert v.unavailable() == ''\n"
        "heavy = {'torch', 'transformers', 'mlx.core', 'mlx_lm', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    run = subprocess.run([sys.executable, "-c", code], env=dict(os.environ, PYTHONPATH=_package_root()))
    assert run.returncode == 0


def test_says_how_to_get_torch(monkeypatch, tmp_path):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    with pytest.raises(UnsupportedError, match=r"pip install 'mlxport\[torch\]'"):
        verify(tmp_path, None)


def _package_root() -> str:
    import mlxport.parity

    return str(Path(mlxport.parity.__file__).parents[2])
