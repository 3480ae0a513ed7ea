"""The way back: of what was converted the checkpoint again, bit for bit where nothing was rounded on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, convert_by_mlx_lm, save_model

import mlxport
from mlxport.errors import MlxportError, UnsupportedError, UsageError, WeightsError
from vision_families import write_family
from whisper_models import make_whisper, save_whisper


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: item for path in sorted(folder.glob("model*.safetensors")) for name, item in load_file(path).items()}


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("architecture", CONFIGS)
def test_unquantized_weights_come_back_bit_for_bit(architecture: str, tmp_path: Path) -> None:
    """Stacked experts, split and fused projections, norms, tied heads; names are those that transformers saves."""
    source = save_model(architecture, tmp_path / "source")
    mlxport.convert(source, tmp_path / "mlx", verify="none")
    report = mlxport.convert(tmp_path / "mlx", tmp_path / "back", to="hf", verify="none")
    assert_same_bits(tensors(tmp_path / "back"), tensors(source))
    assert report.layout == "hf" and report.plan.dtype == "bfloat16"


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with stacked experts beside what becomes of it: ``source``, ``mlx``, and quantized ``q4``."""
    folder = tmp_path_factory.mktemp("moe")
    save_model("qwen3_moe", folder / "source")
    mlxport.convert(folder / "source", folder / "mlx", verify="none")
    mlxport.convert(folder / "source", folder / "q4", quantize=4, q_group_size=32, verify="none")
    return folder


def test_what_transformers_computes_of_it_is_what_the_folder_computes(moe: Path, tmp_path: Path) -> None:
    report = mlxport.convert(moe / "mlx", tmp_path / "back", to="hf", against=moe / "source", max_shard_size="100KB")
    assert report.parity is not None and report.parity.passed and report.tokenizer is not None
    (first, *_) = report.parity.comparisons
    assert first.row == "same weights" and first.relative < 1e-4
    assert "bit for bit as in source: all" in " ".join(report.parity.notes)
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
    expected = transformers.AutoModelForCausalLM.from_pretrained(moe / "source", dtype=torch.float32)
    ids = torch.tensor([[5, 9, 70, 3, 44]])
    with torch.inference_mode():
        assert torch.equal(found(ids).logits, expected(ids).logits)
    files = {path.name for path in (tmp_path / "back").iterdir()}
    assert {"tokenizer.json", "config.json", "model.safetensors.index.json", "mlxport.json", "README.md"} <= files
    assert "library_name: transformers" in (tmp_path / "back/README.md").read_text()
    config, original = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "back", moe / "source")
    )
    assert config == original


def test_what_came_back_is_a_checkpoint_like_any_other(moe: Path, tmp_path: Path) -> None:
    mlxport.convert(moe / "mlx", tmp_path / "back", to="hf", verify="none")
    for use in (mlxport.load, mlxport.AutoModelForCausalLM.from_pretrained):
        with pytest.raises(MlxportError, match="not of MLX|not an MLX model"):
            use(str(tmp_path / "back"))
    mlxport.convert(tmp_path / "back", tmp_path / "again", verify="none")
    first, second = (next(folder.glob("*.safetensors")).read_bytes() for folder in (moe / "mlx", tmp_path / "again"))
    assert first == second


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_quantized_weights_come_back_dequantized_and_that_is_said(moe: Path, tmp_path: Path, dtype: str) -> None:
    import mlx.core as mx

    report = mlxport.convert(moe / "q4", tmp_path / "back", to="hf", dtype=dtype)
    assert any(note.startswith("lossy: ") and "affine 4 bits" in note for note in report.notes)
    assert report.parity is not None and report.parity.passed
    stored: dict[str, Any] = {}
    for path in (moe / "q4").glob("*.safetensors"):
        stored |= mx.load(str(path))
    name = "model.layers.1.mlp.switch_mlp.up_proj"
    wide = [stored[f"{name}.{part}"].astype(mx.float32) for part in ("scales", "biases")]
    whole = mx.dequantize(stored[f"{name}.weight"], *wide, group_size=32, bits=4)
    back = tensors(tmp_path / "back")
    for expert in range(4):
        found = back[f"model.layers.1.mlp.experts.{expert}.up_proj.weight"]
        expected = torch.from_numpy(np.array(whole[expert])).to(found.dtype)
        assert torch.equal(found, expected)
    assert found.dtype == (torch.bfloat16 if dtype == "auto" else torch.float32)
    assert "quantization" not in json.loads((tmp_path / "back/config.json").read_text())


@pytest.mark.parametrize("quantize", [False, True])
def test_a_folder_that_mlx_lm_wrote(quantize: bool, tmp_path: Path) -> None:
    source = save_model("llama_tied", tmp_path / "source")
    convert_by_mlx_lm(source, tmp_path / "mlx", quantize=quantize)
    report = mlxport.convert(tmp_path / "mlx", tmp_path / "back", to="hf")
    assert report.parity is not None and report.parity.passed
    assert tensors(tmp_path / "back").keys() == tensors(source).keys()
    if not quantize:
        assert_same_bits(tensors(tmp_path / "back"), tensors(source))


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_other_modes_come_back_as_mlx_reads_them(mode: str, tmp_path: Path) -> None:
    import mlx.core as mx

    source = save_model("llama", tmp_path / "source")
    mlxport.convert(source, tmp_path / "mlx", quantize=mode, verify="none")
    mlxport.convert(tmp_path / "mlx", tmp_path / "back", to="hf", verify="none", dtype="float32")
    stored: dict[str, Any] = mx.load(str(next((tmp_path / "mlx").glob("*.safetensors"))))
    packing = json.loads((tmp_path / "mlx/config.json").read_text())["quantization"]
    how = {key: packing[key] for key in ("bits", "group_size", "mode")}
    name = "model.layers.0.mlp.down_proj"
    whole = mx.dequantize(stored[f"{name}.weight"], stored[f"{name}.scales"], dtype=mx.float32, **how)
    assert np.array_equal(tensors(tmp_path / "back")[f"{name}.weight"].numpy(), np.array(whole))


def test_what_the_way_to_mlx_dropped_is_named_and_taken_from_the_original(tmp_path: Path) -> None:
    """Buffers come back as they were; a tied head as a copy of the embeddings, as they are now."""
    source = save_model("llama_tied", tmp_path / "source")
    held = tensors(source)
    shutil.rmtree(source / "model.safetensors.index.json", ignore_errors=True)
    for path in source.glob("model*.safetensors*"):
        path.unlink()
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    held["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.arange(8, dtype=torch.float32)
    save_file(held, source / "model.safetensors", {"format": "pt"})
    mlxport.convert(source, tmp_path / "mlx", verify="none")
    report = mlxport.convert(tmp_path / "mlx", tmp_path / "back", to="hf", against=source, verify="none")
    assert_same_bits(tensors(tmp_path / "back"), held)
    said = " ".join(report.notes)
    assert "rotary_emb.inv_freq" in said and "a copy of model.embed_tokens.weight again: lm_head.weight" in said


def test_names_of_a_wrapper_come_back_from_the_original(tmp_path: Path) -> None:
    source = save_model("llama", tmp_path / "source")
    held = {f"module.{name}": item for name, item in tensors(source).items()}
    for path in source.glob("model*.safetensors*"):
        path.unlink()
    save_file(held, source / "model.safetensors", {"format": "pt"})
    mlxport.convert(source, tmp_path / "mlx", verify="none")
    mlxport.convert(tmp_path / "mlx", tmp_path / "back", to="hf", against=source, verify="none")
    assert_same_bits(tensors(tmp_path / "back"), held)


def test_whisper_comes_back_from_mlx_whispers_folder(tmp_path: Path) -> None:
    """Whose config has ten sizes only, and whose tensors lack the encoder's positions: the original has both."""
    source = save_whisper(tmp_path / "source", make_whisper())
    mlxport.convert(source, tmp_path / "mlx", verify="none")
    report = mlxport.convert(tmp_path / "mlx", tmp_path / "back", to="hf", against=source, verify="none")
    assert_same_bits(tensors(tmp_path / "back"), tensors(source))
    assert any("taken from source: model.encoder.embed_positions.weight" in note for note in report.notes)
    with pytest.raises(UnsupportedError, match="does not say what the model is called in transformers") as refused:
        mlxport.convert(tmp_path / "mlx", tmp_path / "again", to="hf", verify="none")
    assert "--against" in refused.value.hint


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_models_of_pictures_come_back_from_mlx_vlms_folder(family: str, tmp_path: Path) -> None:
    write_family(tmp_path / "source", family)
    mlxport.convert(tmp_path / "source", tmp_path / "mlx", verify="none")
    mlxport.convert(tmp_path / "mlx", tmp_path / "back", to="hf", verify="none")
    assert_same_bits(tensors(tmp_path / "back"), tensors(tmp_path / "source"))


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_no_mlx_folder_is_refused(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not an MLX folder"):
        mlxport.convert(moe / "source", tmp_path / "back", to="hf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": 4}, "writes weights that are not quantized"),
        ({"layout": "mlx-lm"}, "name two layouts"),
        ({"kv_bits": 8}, "the way back"),
        ({"to": "gguf"}, "--to 'gguf' does not exist"),
        ({"to": "mlx", "against": "x"}, "--against has no effect without --to hf"),
    ],
)
def test_options_that_make_no_sense_on_the_way_back(
    moe: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        mlxport.convert(moe / "mlx", tmp_path / "back", **{"to": "hf", **options})
    assert not (tmp_path / "back").exists()


def test_another_original_is_refused(moe: Path, tmp_path: Path) -> None:
    other = save_model("llama", tmp_path / "other")
    with pytest.raises(WeightsError, match="is not a conversion of the model of the checkpoint given by --against"):
        mlxport.convert(moe / "mlx", tmp_path / "back", to="hf", against=other)


def test_a_tensor_that_is_missing_or_too_many_is_named(moe: Path, tmp_path: Path) -> None:
    import mlx.core as mx

    broken = Path(shutil.copytree(moe / "mlx", tmp_path / "mlx"))
    (broken / "model.safetensors.index.json").unlink()
    (path,) = broken.glob("*.safetensors")
    held: dict[str, Any] = mx.load(str(path))
    for change, words in (({"model.odd": mx.zeros(3)}, "also holds model.odd"), ({}, "lacks model.norm.weight")):
        kept = {name: item for name, item in held.items() if change or name != "model.norm.weight"}
        mx.save_safetensors(str(path), {**kept, **change}, {"format": "mlx"})
        with pytest.raises(WeightsError, match=words):
            mlxport.convert(broken, tmp_path / "back", to="hf")


def test_a_map_that_rounds_more_than_elements_is_refused(tmp_path: Path) -> None:
    """A part that transformers would make up is not left out without a word."""
    source = save_model("llama", tmp_path / "source")
    mlxport.convert(source, tmp_path / "mlx", verify="none")
    config = json.loads((tmp_path / "mlx/config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (tmp_path / "mlx/config.json").write_text(json.dumps(config))
    with pytest.raises((UnsupportedError, WeightsError)):
        mlxport.convert(tmp_path / "mlx", tmp_path / "back", to="hf")
