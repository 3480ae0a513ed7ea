"""Which files count: strays beside the weights change nothing, and what is not carried is not looked at."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from little_llama import llama_weights
from safetensors.numpy import save_file

from mlxport.errors import MlxportError, SourceError, UnsafeError, WeightsError
from mlxport.source import open_checkpoint, read_rows
from mlxport.source.weight_files import WeightFiles, choose_weight_files, side_names

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX, TORCH, TORCH_INDEX = "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
PAGE = "<!DOCTYPE html>\n<html>text</html>"
STRAYS = [
    "model-old.safetensors",
    "model-old.safetensors.index.json",
    "old.bin",
    "old.bin.index.json",
    "model.pt",
    "x-00001-of-00009.safetensors",
]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # safetensors before torch, the index before a single file, whatever lies beside.
        (["model.safetensors", INDEX, TORCH, TORCH_INDEX], WeightFiles("safetensors", index=INDEX)),
        (["model.safetensors", TORCH, TORCH_INDEX], WeightFiles("safetensors", ("model.safetensors",))),
        ([TORCH, TORCH_INDEX], WeightFiles("torch", index=TORCH_INDEX)),
        ([TORCH], WeightFiles("torch", (TORCH,))),
    ],
)
def test_canonical_names_come_first(names: list[str], expected: WeightFiles) -> None:
    assert choose_weight_files(names, "here") == expected
    assert choose_weight_files([*names, *STRAYS], "here") == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.safetensors.index.json", "b.safetensors"], WeightFiles("safetensors", index="a.safetensors.index.json")),
        ([SECOND, FIRST], WeightFiles("safetensors", (FIRST, SECOND))),
        (["b.safetensors", "b.bin"], WeightFiles("safetensors", ("b.safetensors",))),
        (["b.bin.index.json", "b.bin"], WeightFiles("torch", index="b.bin.index.json")),
        (["model.pt", "b.bin"], WeightFiles("torch", ("model.pt",))),
        (["b.pth"], WeightFiles("torch", ("b.pth",))),
        (["._b.safetensors", "b.bin", "._b.bin", "._b.bin.index.json"], WeightFiles("torch", ("b.bin",))),
        (["b.safetensors", "._b.safetensors"], WeightFiles("safetensors", ("b.safetensors",))),
        ([FIRST, SECOND, f"._{FIRST}", f"._{SECOND}"], WeightFiles("safetensors", (FIRST, SECOND))),
    ],
)
def test_guesses(names: list[str], expected: WeightFiles) -> None:
    assert choose_weight_files(names, "here") == expected


def test_hidden_files_are_no_weights_and_not_carried() -> None:
    with pytest.raises(WeightsError, match="no weights"):
        choose_weight_files(["._model.safetensors", ".model.bin"], "here")
    assert side_names(["._tokenizer.model", ".x.py", "additional_chat_templates/._a.jinja"]) == []


def unreadable(path: Path) -> None:
    """Junk that no reader of weights accepts."""
    path.write_text("junk")


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("stray", STRAYS)
def test_a_stray_beside_torch_files(single: Path, shards: int, stray: str) -> None:
    torch = pytest.importorskip("torch")
    (single / "model.safetensors").unlink()
    state = {name: torch.from_numpy(array) for name, array in llama_weights().items()}
    if shards == 1:
        torch.save(state, single / TORCH)
    else:
        parts = {f"pytorch_model-0000{i + 1}-of-00002.bin": [*state][i * 3 : i * 3 + 3] for i in range(2)}
        for file, held in parts.items():
            torch.save({name: state[name] for name in held}, single / file)
        weight_map = {name: file for file, held in parts.items() for name in held}
        (single / TORCH_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    unreadable(single / stray)
    assert {ref.path.suffix for ref in open_checkpoint(single).tensors.values()} == {".bin"}


@pytest.mark.parametrize("index", [False, True])
def test_an_old_copy_beside_the_weights(single: Path, index: bool) -> None:
    weights = llama_weights()
    save_file({name: array * 0 for name, array in weights.items()}, single / "model-old.safetensors")
    if index:
        weight_map = dict.fromkeys(weights, "model-old.safetensors")
        (single / "model-old.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = open_checkpoint(single)
    assert [path.name for path in checkpoint.weight_files] == ["model.safetensors"]
    assert all(read_rows(ref).tobytes() == weights[name].tobytes() for name, ref in checkpoint.tensors.items())
    assert [problem.split()[0] for problem in checkpoint.problems] == ["model-old.safetensors"]


def test_apple_double_files_beside_shards_without_an_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    for name in (FIRST, SECOND, INDEX):
        unreadable(sharded / f"._{name}")
    checkpoint = open_checkpoint(sharded)
    assert {*checkpoint.tensors} == {*llama_weights()}
    assert checkpoint.problems == ()


def link(target: str) -> Callable[[Path], Any]:
    return lambda path: path.symlink_to(target)


def text(content: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(content)


UNRELATED: list[tuple[str, Callable[[Path], Any]]] = [
    ("LICENSES", Path.mkdir),
    ("NOTICE", Path.mkdir),
    ("x.py", Path.mkdir),
    ("runs.model", Path.mkdir),
    ("tokenizer_runs.json", Path.mkdir),
    ("model.bin", Path.mkdir),
    ("additional_chat_templates/a.jinja", Path.mkdir),
    ("LICENSES", link("/usr")),
    ("train.py", link("nowhere")),
    ("train.py", link("/etc/passwd")),
    ("train.py", link("train.py")),
    ("train.py", os.mkfifo),
    ("README.md", link("nowhere")),
    ("README.md", link("/etc/passwd")),
    ("README.md", os.mkfifo),
    ("README.md", Path.mkdir),
    ("x" * 200 + ".safetensors", link("nowhere")),
]


@pytest.mark.parametrize(("name", "make"), UNRELATED, ids=[f"{n[:30]}-{i}" for i, (n, _) in enumerate(UNRELATED)])
def test_what_is_not_part_of_it_is_left_out(single: Path, name: str, make: Callable[[Path], Any]) -> None:
    (single / name).parent.mkdir(exist_ok=True)
    make(single / name)
    names = [path.name for path in open_checkpoint(single).side_files]
    assert names == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("README.md", LFS), ("README.md", PAGE), ("train.py", LFS), ("LICENSE.html", PAGE), ("LICENSE.md", PAGE)],
)
def test_text_that_is_no_reason_to_refuse(single: Path, name: str, content: str) -> None:
    (single / name).write_text(content)
    assert single / name in open_checkpoint(single).side_files


@pytest.mark.parametrize(
    ("name", "make", "kind", "trust"),
    [
        ("LICENSE.html", text(LFS), SourceError, False),
        ("LICENSE", link("/etc/passwd"), UnsafeError, False),
        ("chat_template.jinja", text(PAGE), SourceError, False),
        ("modeling_x.py", text(LFS), SourceError, True),
        ("modeling_x.py", link("/etc/passwd"), UnsafeError, True),
        ("vocab.json", link("nowhere"), SourceError, False),
    ],
)
def test_what_is_carried_is_checked(
    single: Path, name: str, make: Callable[[Path], Any], kind: type[MlxportError], trust: bool
) -> None:
    make(single / name)
    with pytest.raises(kind) as caught:
        open_checkpoint(single, trust_remote_code=trust)
    assert str(single / name) in caught.value.message
    assert caught.value.hint


def test_a_config_that_is_a_folder_is_told_from_none(single: Path) -> None:
    (single / "config.json").unlink()
    (single / "config.json").mkdir()
    with pytest.raises(SourceError, match=r"config\.json is not a regular file"):
        open_checkpoint(single)


def test_a_folder_of_folders_is_not_called_empty(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(SourceError, match="has no config"):
        open_checkpoint(tmp_path)


def test_only_the_formats_of_others(tmp_path: Path, single: Path) -> None:
    (single / "model.safetensors").rename(single / "model.gguf")
    shutil.copy(single / "model.gguf", single / "._model.safetensors")
    with pytest.raises(WeightsError, match="model.gguf is not a GGUF file"):
        open_checkpoint(single)
