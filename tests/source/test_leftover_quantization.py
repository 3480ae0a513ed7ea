"""A block of a quantizer beside plain weights does not count; beside packed ones it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import save, weights, write_raw, write_side_files
from mlxport.errors import UnsupportedError
from mlxport.layouts.mlx_lm.opening import check_supported, open_model
from mlxport.source import open_checkpoint

BLOCKS: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
    "fp8": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    "MLX": {"quantization": {"bits": 4, "group_size": 64}, "quantization_config": {"bits": 4, "group_size": 64}},
    "MLX, null": {"quantization": {"bits": None, "group_size": None}},
    "of the text part": {"text_config": {"quantization_config": {"quant_method": "awq"}}},
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_plain_weights_are_converted_as_they_are(block: dict[str, Any], tmp_path: Path) -> None:
    write_side_files(tmp_path, **block)
    save(tmp_path / "model.safetensors", weights())
    seen: list[Any] = []
    checkpoint = open_checkpoint(tmp_path, check_config=seen.append)
    assert seen == [checkpoint.config] and "quantization" not in json.dumps(checkpoint.config)
    (problem,) = checkpoint.problems
    assert all(key in problem for key in block) and "delete it from config.json" in problem
    if "text_config" not in block:
        assert not open_model(checkpoint).plain.quantized


@pytest.mark.parametrize("name", ["gptq", "bitsandbytes"])
@pytest.mark.parametrize(
    ("tensor", "dtype"),
    [
        ("model.layers.0.mlp.up_proj.qweight", "I32"),
        ("model.layers.0.mlp.up_proj.weight", "U8"),
        ("model.layers.0.mlp.up_proj.weight", "F8_E4M3"),
        ("model.layers.0.mlp.up_proj.weight.absmax", "F32"),
    ],
)
def test_one_packed_weight_makes_the_block_count(name: str, tensor: str, dtype: str, tmp_path: Path) -> None:
    write_side_files(tmp_path, **BLOCKS[name])
    save(tmp_path / "model.safetensors", {key: array for key, array in weights().items() if key != tensor})
    size = {"I32": 4, "F32": 4}.get(dtype, 1) * 4
    write_raw(
        tmp_path / "packed.safetensors",
        {tensor: {"dtype": dtype, "shape": [2, 2], "data_offsets": [0, size]}},
        bytes(size),
    )
    index = {key: "model.safetensors" for key in weights() if key != tensor} | {tensor: "packed.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(UnsupportedError, match=f"quantized with {name}"):
        open_checkpoint(tmp_path, check_config=check_supported)


def test_a_model_that_quantizes_while_it_computes_keeps_its_block(tmp_path: Path) -> None:
    write_side_files(tmp_path, quantization_config={"quant_method": "bitnet", "quantization_mode": "online"})
    save(tmp_path / "model.safetensors", weights())
    checkpoint = open_checkpoint(tmp_path)
    assert "quantization_config" in checkpoint.config and not checkpoint.problems


def test_masks_and_positions_are_no_packed_weights(tmp_path: Path) -> None:
    write_side_files(tmp_path, **BLOCKS["gptq"])
    save(tmp_path / "model.safetensors", weights())
    header = {"model.layers.0.attn.bias": {"dtype": "BOOL", "shape": [4, 4], "data_offsets": [0, 16]}}
    write_raw(tmp_path / "buffers.safetensors", header, np.tril(np.ones((4, 4), bool)).tobytes())
    index = dict.fromkeys(weights(), "model.safetensors") | dict.fromkeys(header, "buffers.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert "quantization_config" not in open_checkpoint(tmp_path).config
