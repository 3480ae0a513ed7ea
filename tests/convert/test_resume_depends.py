"""What finished shards depend on: an interrupted run goes on where all of it is the same, and starts anew where not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from checkpoints import INDEX, edit_json, hash_tree, leftovers, read_raw, write_llama, write_raw, write_tokenizer
from command import finish, start, stop_after
from mlxport.convert import steps

SHARDED = ("--verify", "none", "--max-shard-size", "20KB")
SIZES: dict[str, Any] = dict(
    vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=0,
)  # fmt: skip
MAMBA = dict(mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8)
CONFIGS: dict[str, Callable[[], Any]] = {
    "falcon_h1": lambda: transformers.FalconH1Config(**SIZES, **MAMBA, key_multiplier=0.5),
    "cohere": lambda: transformers.CohereConfig(**SIZES, logit_scale=0.25),
    "gemma2": lambda: transformers.Gemma2Config(**SIZES, query_pre_attn_scalar=16),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(**{**SIZES, "num_hidden_layers": 6}),
    "granite": lambda: transformers.GraniteConfig(**SIZES, embedding_multiplier=2.0),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A random model of an architecture as transformers saves it; not to be written to."""
    root, made = tmp_path_factory.mktemp("saved"), {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            torch.manual_seed(0)
            folder = made[architecture] = root / architecture
            model = transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture](), dtype=torch.float32)
            model.save_pretrained(folder)
            write_tokenizer(folder)
        return made[architecture]

    return make


@pytest.mark.parametrize(
    ("architecture", "change"),
    [
        ("falcon_h1", {"key_multiplier": 0.75}),
        ("falcon_h1", {"ssm_multipliers": [0.5, 1.0, 1.0, 2.0, 1.0]}),
        ("falcon_h1", {"attention_in_multiplier": 2.0}),
        ("cohere", {"logit_scale": 0.5}),
        ("gemma2", {"query_pre_attn_scalar": 32}),
        ("gemma3_text", {"rms_norm_eps": 1e-5}),
        ("granite", {"embedding_multiplier": 3.0}),
    ],
)
def test_a_change_of_the_config_starts_the_shards_anew(architecture, change, saved, forks, tmp_path):
    """Names and shapes of the tensors are the same, and of falcon_h1 what is in them is not."""
    source = Path(shutil.copytree(saved(architecture), tmp_path / "source"))
    command = ("convert", source, tmp_path / "out", *SHARDED)
    interrupt(forks, command, tmp_path)
    edit_json(source / "config.json", **change)
    again = forks.run(*command, watch=tmp_path / "out")
    assert again["code"] == 0 and "resumed" not in again["stderr"]
    told = [line for line in again["stderr"].splitlines() if line.startswith("starting anew")]
    assert told == ["starting anew: config.json changed since the interrupted run"]
    assert forks.run("convert", source, tmp_path / "whole", *SHARDED, watch=tmp_path)["code"] == 0
    assert hash_tree(tmp_path / "out") == hash_tree(tmp_path / "whole")
    assert leftovers(tmp_path) == []


def interrupt(forks: Any, command: tuple[Any, ...], folder: Path) -> None:
    """A run that is killed once two shards are finished."""
    killed = forks.run(*command, watch=folder / "out", kill_on="model-00003")
    assert killed["code"] == -signal.SIGKILL, killed
    assert len(list((folder / "out.partial").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize(
    "options", [(), ("-q", "4", "--group-size", "32", "--max-shard-size", "5KB")], ids=["plain", "quantized"]
)
def test_without_a_change_another_process_goes_on(architecture, options, saved, forks, tmp_path):
    """What a trace gives is the same in every process."""
    command = ("convert", saved(architecture), tmp_path / "out", *SHARDED, *options)
    interrupt(forks, command, tmp_path)
    again = forks.run(*command, watch=tmp_path / "out")
    assert again["code"] == 0 and "resumed: 2 of" in again["stderr"], again


@pytest.mark.parametrize("package", ["mlx", "mlx-lm"])
def test_another_version_starts_the_shards_anew(package, source, forks, mlxport, monkeypatch, tmp_path):
    command = ("convert", source, tmp_path / "out", *SHARDED)
    interrupt(forks, command, tmp_path)
    newer = tmp_path / f"{package.replace('-', '_')}-99.0.dist-info"
    newer.mkdir()
    (newer / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = mlxport(*command)
    assert result.code == 0 and "resumed" not in result.err
    assert f"starting anew: the version of {package} changed since the interrupted run" in result.err


@pytest.mark.parametrize("how", ["rewritten in place", "replaced"])
def test_other_weights_start_the_shards_anew_whatever_their_time_says(how, source, forks, mlxport, tmp_path):
    command = ("convert", source, tmp_path / "out", *SHARDED)
    interrupt(forks, command, tmp_path)
    change(source / "model-00001-of-00003.safetensors", how)
    result = mlxport(*command)
    assert result.code == 0
    assert "starting anew: the weight files changed since the interrupted run" in result.err
    assert mlxport("convert", source, tmp_path / "whole", *SHARDED).code == 0
    assert hash_tree(tmp_path / "out") == hash_tree(tmp_path / "whole")


def test_an_index_that_points_elsewhere_starts_the_shards_anew(forks, mlxport, tmp_path):
    """The weight files are as they were; which of two tensors of one name counts is another."""
    source = write_llama(tmp_path / "source", shards=2)
    first, name = source / "model-00001-of-00002.safetensors", "model.norm.weight"
    header, data = read_raw(first)
    another = {"dtype": "BF16", "shape": [64], "data_offsets": [len(data), len(data) + 128]}
    write_raw(first, {**header, name: another}, data + bytes(128))
    command = ("convert", source, tmp_path / "out", *SHARDED)
    interrupt(forks, command, tmp_path)
    index = json.loads((source / INDEX).read_text())
    index["weight_map"][name] = first.name
    (source / INDEX).write_text(json.dumps(index))
    result = mlxport(*command)
    assert result.code == 0
    assert "starting anew: how the weights are computed changed since the interrupted run" in result.err


# --- a source that changes while it is converted ---------------------------------------------------------------------


def change(path: Path, how: str) -> None:
    """Change a file, with its modification time as before wherever that can be."""
    before = path.stat()
    if how == "gone":
        path.unlink()
        return
    if how == "longer":
        path.write_bytes(path.read_bytes() + b" ")
    elif how == "other attributes":
        path.chmod(0o600)
        path.with_name("another name").hardlink_to(path)
    else:
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        if how == "replaced":
            path.rename(path.with_name("kept"))
        with open(path, "r+b" if path.exists() else "wb") as file:
            file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def changing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets something happen to a file of the source when a step of the conversion ends."""

    def at(step: str, path: Path, how: str) -> None:
        number = next(n for n, each in enumerate(steps.STEPS) if each.__name__ == step) + 1
        more = (*steps.STEPS[:number], lambda state: change(path, how), *steps.STEPS[number:])
        monkeypatch.setattr(steps, "STEPS", more)

    return at


@pytest.mark.parametrize("step", ["write_shards", "end_progress"])
@pytest.mark.parametrize("how", ["rewritten in place", "replaced", "longer", "gone"])
@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "tokenizer.json", "config.json", INDEX])
def test_a_source_that_changes_midway_is_noticed(name, how, step, source, changing, mlxport, tmp_path):
    changing(step, source / name, how)
    result = mlxport("convert", source, tmp_path / "out", "--verify", "none")
    assert result.code == 1 and not (tmp_path / "out").exists()
    assert result.err.splitlines()[-2].startswith(f"error: {source / name} changed while it was converted: ")
    assert result.err.splitlines()[-1].startswith("hint: let nothing write to the source, and run the same command")


def test_after_a_change_midway_the_same_command_starts_anew(source, changing, mlxport, monkeypatch, tmp_path):
    command = ("convert", source, tmp_path / "out", *SHARDED)
    with monkeypatch.context():
        changing("write_shards", source / "model-00001-of-00003.safetensors", "rewritten in place")
        assert mlxport(*command).code == 1
    monkeypatch.undo()
    result = mlxport(*command)
    assert result.code == 0 and "starting anew: the weight files changed" in result.err
    assert mlxport("convert", source, tmp_path / "whole", *SHARDED).code == 0
    assert hash_tree(tmp_path / "out") == hash_tree(tmp_path / "whole")


@pytest.mark.parametrize("step", ["write_shards", "end_progress"])
@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "tokenizer.json"])
def test_other_attributes_are_no_other_content(name, step, source, changing, mlxport, tmp_path):
    """A backup links and a system marks what it likes, while hours of work go on."""
    changing(step, source / name, "other attributes")
    assert mlxport("convert", source, tmp_path / "out", "--verify", "none").code == 0


def test_a_change_is_the_error_and_not_what_comes_of_it(source, changing, mlxport, tmp_path):
    """The comparison with the original would fail, for a reason that is not the conversion's."""
    changing("hash_source", source / "model-00002-of-00003.safetensors", "gone")
    result = mlxport("convert", source, tmp_path / "out", "--verify", "layerwise")
    assert result.code == 1 and "changed while it was converted: it is gone" in result.err


def test_a_change_in_a_process_that_is_under_way_is_noticed(many_shards, tmp_path):
    source = Path(shutil.copytree(many_shards, tmp_path / "source"))
    process = start("convert", source, tmp_path / "out", *SHARDED)
    stop_after(process, tmp_path / "out.partial", 2)
    change(source / "model-00002-of-00002.safetensors", "rewritten in place")
    process.send_signal(signal.SIGCONT)
    result = finish(process)
    assert result.code == 1 and "changed while it was converted: it was written to" in result.err
    assert not (tmp_path / "out").exists()
