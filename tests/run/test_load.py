from __future__ import annotations

import json
import shutil

import mlx.core as mx
import pytest

from mlxport.errors import (
    ConfigError,
    MlxportError,
    SourceError,
    TokenizerError,
    UnsafeError,
    UnsupportedError,
    WeightsError,
)
from mlxport.run import AutoModelForCausalLM, load


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "model")


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_folders_of_mlx_lm_load(llama, tmp_path):
    from mlx_lm.utils import load as mlx_lm_load
    from mlx_lm.utils import quantize_model, save

    model, tokenizer, config = mlx_lm_load(str(llama), return_config=True)
    model, config = quantize_model(model, config, 32, 4)
    save(tmp_path / "q4", str(llama), model, tokenizer, config, donate_model=False)
    assert load(tmp_path / "q4").config["quantization"]["bits"] == 4


def test_mlxports_own_record_is_enough(copy):
    weights = mx.load(str(copy / "model.safetensors"))
    mx.save_safetensors(str(copy / "model.safetensors"), weights)
    with pytest.raises(SourceError):
        load(copy)
    (copy / "mlxport.json").write_text("{}")
    assert load(copy).config["model_type"] == "llama"


def test_an_unconverted_checkpoint_is_refused(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32, rope_theta=5e5
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "hf")
    with pytest.raises(SourceError, match="is not an MLX model") as caught:
        AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert caught.value.hint == f"convert it first: mlxport convert {tmp_path}/hf hf-mlx"


def no_config(folder):
    (folder / "config.json").unlink()


def adapter(folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")


def adapter_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")


def truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def missing_tensor(folder):
    weights = mx.load(str(folder / "model.safetensors"))
    kept = {name: value + 0 for name, value in weights.items() if "q_proj" not in name}
    mx.eval(kept)
    mx.save_safetensors(str(folder / "model.safetensors"), kept, metadata={"format": "mlx"})


BROKEN = {
    "no config": (no_config, ConfigError, "no config.json"),
    "adapter": (adapter, ConfigError, "no config.json"),
    "adapter beside a config": (adapter_weights, WeightsError, "PEFT adapter"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), ConfigError, "not JSON"),
    "config not UTF-8": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), ConfigError, "is not UTF-8"),
    "config nested": (lambda f: (f / "config.json").write_text("[" * 100_000), ConfigError, "is not accepted: max"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), ConfigError, "not a JSON object but a list"),
    "no model_type": (lambda f: edit_config(f, model_type=None), ConfigError, "model_type"),
    "unknown model_type": (lambda f: edit_config(f, model_type="zzz"), UnsupportedError, "does not know 'zzz'"),
    "field missing": (lambda f: edit_config(f, hidden_size=None), WeightsError, "mlx-lm cannot load it"),
    "own code": (lambda f: edit_config(f, model_file="model.py"), UnsafeError, "not been run"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), WeightsError, "no model"),
    "empty weights": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        WeightsError,
        "is truncated: it has 0 bytes",
    ),
    "LFS pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        WeightsError,
        "is a git-LFS pointer",
    ),
    "truncated weights": (truncated, WeightsError, "its header promises"),
    "missing tensor": (missing_tensor, WeightsError, "Missing"),
    "no tokenizer": (
        lambda f: [file.unlink() for file in f.iterdir() if "token" in file.name],
        TokenizerError,
        "no tokenizer",
    ),
    "tokenizer not JSON": (lambda f: (f / "tokenizer.json").write_text("{"), TokenizerError, "no tokenizer"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_one_error_that_names_the_folder_and_a_remedy(copy, name):
    breaking, kind, message = BROKEN[name]
    breaking(copy)
    with pytest.raises(MlxportError, match=message) as caught:
        load(copy)
    assert type(caught.value) is kind
    assert str(copy) in caught.value.message and caught.value.hint
    assert "\n" not in caught.value.message


def test_code_of_the_folder_runs_only_when_trusted(copy, llama):
    (copy / "model.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
        "from mlx_lm.models.llama import Model, ModelArgs\n"
    )
    edit_config(copy, model_file="model.py")
    with pytest.raises(UnsafeError):
        load(copy)
    assert not (copy / "ran").exists()
    load(copy, trust_remote_code=True)
    assert (copy / "ran").exists()


def test_a_model_needs_no_tokenizer_of_its_own(copy):
    for file in copy.iterdir():
        if "token" in file.name:
            file.unlink()
    assert AutoModelForCausalLM.from_pretrained(copy).generate([[71]], max_new_tokens=2).shape == (1, 3)


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "a/b/c", "", "x" * 5000])
def test_a_missing_path_is_an_error(path):
    with pytest.raises(SourceError) as caught:
        load(path)
    assert caught.value.hint


def test_a_file_is_not_a_model(copy):
    with pytest.raises(SourceError, match="is a file"):
        load(copy / "model.safetensors")


def test_a_repository_that_cannot_be_fetched_is_an_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="not fetched from the hub") as caught:
        load("some-organisation/none-such")
    assert "spelling" in caught.value.hint
