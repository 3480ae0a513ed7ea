"""Whisper for mlx-whisper: what is written, what is refused, that it computes what the original does."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch

import mlxport
from mlxport.errors import ConfigError, QuantizationError, UnsupportedError, UsageError, WeightsError
from mlxport.layouts.mlx_whisper.weight_names import mlx_name
from mlxport.layouts.table import chosen
from whisper_models import HEADS, WIDTH, make_whisper, save_openai, save_whisper

needs_mlx_whisper = pytest.mark.skipif(
    importlib.util.find_spec("mlx_whisper") is None, reason="mlx-whisper is not installed"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("whisper") / "source", make_whisper(), shard="3MB")


def written(folder: Path) -> dict[str, mx.array]:
    return mx.load(str(folder / "weights.safetensors"))


def changed(source: Path, folder: Path, file: str, **values: object) -> Path:
    """A copy of a folder with values of one of its JSON files changed; None takes one out."""
    shutil.copytree(source, folder)
    data = json.loads((folder / file).read_text()) | values
    (folder / file).write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    return folder


def test_shards_become_one_file_with_mlx_whispers_names(source, tmp_path):
    out = tmp_path / "out"
    report = mlxport.convert(source, out, verify="none", max_shard_size="1MB")
    assert len(list(source.glob("model-*.safetensors"))) > 1
    assert report.layout == "mlx-whisper" and [shard.filename for shard in report.plan.shards] == [
        "weights.safetensors"
    ]
    config = json.loads((out / "config.json").read_text())
    assert len(config) == 11 and config["n_audio_state"] == WIDTH and config["model_type"] == "whisper"
    assert {path.name for path in out.iterdir()} >= {
        "generation_config.json",
        "preprocessor_config.json",
        "mlxport.json",
    }
    tensors, original = written(out), make_whisper().state_dict()
    assert tensors["alignment_heads"].tolist() == HEADS
    assert "encoder.positional_embedding" not in tensors
    for name, tensor in original.items():
        if (ours := mlx_name(name)) in tensors:
            wanted = tensor.transpose(1, 2) if "conv" in name and tensor.ndim == 3 else tensor
            assert np.array_equal(np.array(tensors[ours]), wanted.numpy()), name


def test_openais_file_is_the_same_model(source, tmp_path):
    model = make_whisper()
    path = save_openai(tmp_path / "tiny.en.pt", model)
    mlxport.convert(path, tmp_path / "openai", verify="none")
    mlxport.convert(source, tmp_path / "hugging", verify="none", dtype="float16")
    ours, theirs = written(tmp_path / "openai"), written(tmp_path / "hugging")
    assert ours.keys() == theirs.keys()
    assert all(
        np.array_equal(np.array(ours[name]), np.array(theirs[name])) for name in ours if name != "alignment_heads"
    )
    assert ours["alignment_heads"].tolist() == [[1, 0], [1, 1]]  # mlx-whisper's own choice: the file names none
    assert (tmp_path / "openai" / "config.json").read_text() == (tmp_path / "hugging" / "config.json").read_text()
    state = {"encoder.positional_embedding": torch.zeros(4, 4)}
    torch.save({"dims": {"n_mels": 80}, "model_state_dict": state}, tmp_path / "odd.pt")
    with pytest.raises(ConfigError, match="n_audio_ctx is None"):
        mlxport.convert(tmp_path / "odd.pt", tmp_path / "odd")
    assert mlxport.inspect(path).way_out.startswith("it converts to mlx-whisper's layout")


@needs_mlx_whisper
def test_quantized_as_mlx_whisper_loads_it(tmp_path):
    source, out = save_whisper(tmp_path / "halves", make_whisper(), dtype=torch.float16), tmp_path / "out"
    report = mlxport.convert(source, out, quantize=4, q_group_size=32)
    assert report.parity.passed and report.parity.bits == 4
    assert [row.passed for row in report.parity.comparisons if row.compared]
    config = json.loads((out / "config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"} and len(config) == 12
    scaled = {name for name in written(out) if name.endswith(".scales")}
    assert "decoder.token_embedding.scales" in scaled and len(scaled) == 2 * (4 + 2) + 2 * (8 + 2) + 1


@needs_mlx_whisper
def test_verified_by_mlx_whispers_own_model(source, tmp_path):
    out = tmp_path / "out"
    report = mlxport.convert(source, out)
    names = [row.name for row in report.parity.comparisons]
    assert names == ["encoder", "logits"] and all(row.relative < 1e-4 for row in report.parity.comparisons)
    weights = written(out)
    weights["decoder.blocks.1.mlp1.weight"] = weights["decoder.blocks.1.mlp1.weight"] * 1.1
    mx.save_safetensors(str(out / "weights.safetensors"), weights)
    again = mlxport.verify(out, source)
    assert not again.passed and "decoder.blocks.1.mlp1.weight" in again.failure_message()


def test_without_mlx_whisper_it_is_said_not_to_be_verified(source, tmp_path, monkeypatch):
    from mlxport.parity import speech_parity

    monkeypatch.setattr(speech_parity, "LOADER", "no_such_module_at_all")
    report = mlxport.convert(source, tmp_path / "out")
    said = "not verified: mlx-whisper is not installed (pip install 'mlxport[whisper]')"
    assert report.not_verified == said and report.parity is None
    with pytest.raises(UnsupportedError, match="mlx-whisper is not installed"):
        mlxport.verify(tmp_path / "out", source)


def test_an_interrupted_conversion_goes_on(source, tmp_path):
    mlxport.convert(source, tmp_path / "out", verify="none", dtype="bfloat16")
    tensors = written(tmp_path / "out")
    assert {array.dtype for name, array in tensors.items() if name != "alignment_heads"} == {mx.bfloat16}
    report = mlxport.convert(source, tmp_path / "out", verify="none", dry_run=True, overwrite=True)
    assert report.dry_run and report.layout == "mlx-whisper"


def test_other_spellings_of_a_config(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    names = {"hidden_size": config.pop("d_model"), "num_hidden_layers": config.pop("encoder_layers")}
    config |= names | {"torch_dtype": "float32", "forced_decoder_ids": [[1, 50362]], "max_length": 448}
    config.pop("num_mel_bins")  # 80 by default
    folder = tmp_path / "old"
    shutil.copytree(source, folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    mlxport.convert(folder, tmp_path / "out", verify="none")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["n_audio_layer"] == 2
    assert written(tmp_path / "out")["alignment_heads"].tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize(
    "value, chosen_layout",
    [({"encoder_ffn_dim": 100}, "generated-speech"), ({"vocab_size": 320}, "generated-speech"), ({}, "mlx-whisper")],
)
def test_what_mlx_whisper_computes_otherwise_is_a_port(source, value, chosen_layout):
    config = json.loads((source / "config.json").read_text()) | value
    assert chosen("auto", config).name == chosen_layout


def test_refusals(source, tmp_path):
    model = make_whisper()
    with torch.no_grad():
        model.model.encoder.embed_positions.weight[700] += 0.01
    other = save_whisper(tmp_path / "positions", model)
    with pytest.raises(UnsupportedError, match=r"embed_positions.weight is not the table of sinusoids \(off by 0.01\)"):
        mlxport.convert(other, tmp_path / "out")
    cases = [
        ("generation_config.json", {"alignment_heads": [[2, 0]]}, {}, ConfigError, "a layer below 2"),
        ("config.json", {"encoder_ffn_dim": 96}, {"layout": "mlx-whisper"}, UnsupportedError, "4 \\* d_model, 128"),
        ("config.json", {"d_model": "wide"}, {}, ConfigError, "d_model is 'wide'"),
        ("config.json", {"decoder_layers": 3}, {}, WeightsError, "decoder.blocks.2"),
        ("config.json", {"max_target_positions": 300}, {}, WeightsError, r"asks for shape \(300, 32\)"),
        ("config.json", {}, {"kv_bits": 8, "layout": "mlx-whisper"}, UsageError, "models that read texts"),
    ]
    for number, (file, values, options, kind, said) in enumerate(cases):
        folder = changed(source, tmp_path / str(number), file, **values)
        with pytest.raises(kind, match=said):
            mlxport.convert(folder, tmp_path / "out", **options)
    recipe = tmp_path / "two.toml"
    recipe.write_text('"encoder.*" = {bits = 8, group_size = 32}\n"*" = {bits = 4, group_size = 32}\n')
    with pytest.raises(QuantizationError, match="one setting"):
        mlxport.convert(source, tmp_path / "out", recipe=recipe, verify="none")
