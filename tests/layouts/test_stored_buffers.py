"""Buffers that old checkpoints store beside their weights: dropped for every architecture, and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

import mlxport
from checkpoints import HEADS, HIDDEN, config, save, weights, write_side_files
from mlxport.errors import WeightsError
from mlxport.layouts.mlx_lm.normalize import normalize_config
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


# mlx-lm's own loader has a place for them in llama and some others only
@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("llama", {}),
        ("gemma", {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True}),
        ("starcoder2", {"hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "tie_word_embeddings": True}),
        ("stablelm", {"partial_rotary_factor": 1.0, "use_qkv_bias": False, "layer_norm_eps": 1e-5}),
        ("olmo2", {}),
    ],
)
def test_stored_frequencies_are_dropped_for_every_architecture(
    model_type: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    write_side_files(tmp_path, model_type=model_type, **fields)
    normalized = normalize_config(json.loads((tmp_path / "config.json").read_text())).config
    model_class, arguments = _get_classes(dict(normalized))
    arrays = dict(tree_flatten(model_class(arguments.from_dict(normalized)).parameters()))
    add = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": frequencies(50000.0) for n in range(2)}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays | add, metadata={"format": "pt"})
    plain = open_model(open_checkpoint(tmp_path)).plain
    assert set(plain.program.unused()) == set(add) and set(plain.program.outputs) == set(arrays)
    assert not any("inv_freq" in note for note in plain.notes)


def as_numpy(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))


@pytest.mark.parametrize(("theta", "scaled", "said"), [(50000.0, False, False), (1e6, False, True), (1e6, True, False)])
def test_frequencies_of_another_theta_are_said(theta: float, scaled: bool, said: bool, tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "rope_theta": 50000.0, "factor": 2.0} if scaled else config()["rope_parameters"]
    write_side_files(tmp_path, rope_parameters=rope)
    add = {"model.layers.0.self_attn.rotary_emb.inv_freq": as_numpy(frequencies(theta))}
    save(tmp_path / "model.safetensors", weights() | add, "BF16")
    notes = open_model(open_checkpoint(tmp_path)).plain.notes
    assert any("is not of rope_theta 50000" in note for note in notes) is said


def test_what_is_no_buffer_is_still_refused(tmp_path: Path) -> None:
    write_side_files(tmp_path)
    save(tmp_path / "model.safetensors", weights() | {"model.layers.0.self_attn.gate.bias": np.ones(4)}, "F32")
    with pytest.raises(WeightsError, match="no place for model.layers.0.self_attn.gate.bias"):
        mlxport.convert(tmp_path, tmp_path.parent / "out", dry_run=True)
