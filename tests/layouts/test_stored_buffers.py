"""Buffers that old checkpoints store beside their weights: dropped for every architecture, and checked."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

import mlxport
from checkpoints import HEADS, HIDDEN, config, save, weights, write_side_files
from mlxport.errors import WeightsError
from mlxport.layouts.mlx_lm.opening import open_model
from mlxport.layouts.mlx_lm.stored_buffers import is_buffer
from mlxport.source import open_checkpoint

DIMS = HIDDEN // HEADS
TRIANGLE = mx.tril(mx.ones((1, 1, 8, 8))).astype(mx.uint8)


def frequencies(theta: float) -> mx.array:
    return theta ** -(mx.arange(0, DIMS, 2) / DIMS)


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", frequencies(1e4), True),
        ("model.rotary_emb.original_inv_freq", frequencies(1e4), True),
        ("transformer.rotary_pos_emb.inv_freq", frequencies(1e4).astype(mx.bfloat16), True),
        ("layers.0.attention.inner_attention.rope.freqs", frequencies(1e4), True),
        ("model.layers.0.self_attn.rotary_emb.cos_cached", mx.ones((1, 1, 8, 16)), True),
        ("transformer.h.0.attn.bias", TRIANGLE, True),
        ("transformer.h.0.attn.attention.masked_bias", mx.array(-1e9), True),
        ("bert.embeddings.position_ids", mx.arange(8)[None], True),
        ("transformer.h.0.attn.bias", mx.ones((8,)), False),
        ("model.layers.0.self_attn.inv_freq", mx.ones((8, 8)), False),
        ("model.position_ids", mx.ones((8, 8)), False),
        ("model.layers.0.self_attn.q_proj.bias", mx.ones((8,)), False),
    ],
)
def test_buffers_are_told_from_weights(name: str, array: mx.array, expected: bool) -> None:
    assert is_buffer(name, array) is expected


# mlx-lm's own loader has no place for them, but for those of llama and some others
@pytest.mark.parametrize("model_type", ["llama", "gemma", "starcoder2", "olmo", "cohere"])
def test_stored_frequencies_are_dropped_for_every_architecture(model_type: str, tmp_path: Path) -> None:
    arrays = {name: array for name, array in weights().items() if _has(model_type, name)}
    if model_type == "starcoder2":
        arrays = _starcoder2(arrays)
    add = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": frequencies(50000.0) for n in range(2)}
    write_side_files(
        tmp_path, model_type=model_type, tie_word_embeddings=model_type in ("gemma", "starcoder2", "cohere")
    )
    save(tmp_path / "model.safetensors", arrays | {name: _numpy(array) for name, array in add.items()}, "F32")
    plain = open_model(open_checkpoint(tmp_path)).plain
    assert plain.program.unused() == tuple(add) and not any("inv_freq" in note for note in plain.notes)


def _has(model_type: str, name: str) -> bool:
    """Whether an architecture has a tensor of a llama."""
    if model_type in ("gemma", "starcoder2", "cohere") and name == "lm_head.weight":
        return False
    if model_type == "cohere" and "post_attention" in name:
        return False
    return not (model_type == "olmo" and ("layernorm" in name or name == "model.norm.weight"))


def _starcoder2(arrays: dict) -> dict:
    """Biases everywhere, layer norms with them, an MLP of two matrices."""
    out = {}
    for name, array in arrays.items():
        if "gate_proj" in name:
            continue
        new = name.replace("up_proj", "c_fc").replace("down_proj", "c_proj")
        out[new] = array
        if "embed" not in name:
            out[new.replace("weight", "bias")] = array[..., 0] if array.ndim > 1 else array
    return out


def _numpy(array: mx.array):
    import numpy as np

    return np.array(array.astype(mx.float32))


@pytest.mark.parametrize(("theta", "scaled", "said"), [(50000.0, False, False), (1e6, False, True), (1e6, True, False)])
def test_frequencies_of_another_theta_are_said(theta: float, scaled: bool, said: bool, tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "rope_theta": 50000.0, "factor": 2.0} if scaled else config()["rope_parameters"]
    write_side_files(tmp_path, rope_parameters=rope)
    add = {"model.layers.0.self_attn.rotary_emb.inv_freq": _numpy(frequencies(theta))}
    save(tmp_path / "model.safetensors", weights() | add, "BF16")
    notes = open_model(open_checkpoint(tmp_path)).plain.notes
    assert any("is not of rope_theta 50000" in note for note in notes) is said


def test_what_is_no_buffer_is_still_refused(tmp_path: Path) -> None:
    import numpy as np

    write_side_files(tmp_path)
    save(tmp_path / "model.safetensors", weights() | {"model.layers.0.self_attn.gate.bias": np.ones(4)}, "F32")
    with pytest.raises(WeightsError, match="no place for model.layers.0.self_attn.gate.bias"):
        mlxport.convert(tmp_path, tmp_path.parent / "out", dry_run=True)
