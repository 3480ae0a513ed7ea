from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from little_llama import llama_weights
from safetensors.numpy import save_file

from mlxport.errors import (
    ConfigError,
    MlxportError,
    SourceError,
    TokenizerError,
    UnsafeError,
    UnsupportedError,
    WeightsError,
)
from mlxport.source import open_checkpoint, read_rows

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def test_index_is_the_truth(sharded: Path) -> None:
    weights = llama_weights()
    # Neither an old copy nor a single file beside the shards changes anything.
    save_file({name: array * 0 for name, array in weights.items()}, sharded / "model-old.safetensors")
    save_file({"other": np.ones(1)}, sharded / "model.safetensors")
    checkpoint = open_checkpoint(sharded)
    assert [*checkpoint.tensors] == [*weights]
    for name, array in weights.items():
        assert read_rows(checkpoint.tensors[name]).tobytes() == array.tobytes()
    assert checkpoint.nbytes == sum(array.nbytes for array in weights.values())
    assert [path.name for path in checkpoint.weight_files] == [FIRST, SECOND]
    assert checkpoint.name == "tiny"
    assert [problem.split()[0] for problem in checkpoint.problems] == ["model-old.safetensors", "model.safetensors"]


def test_tensors_that_the_index_does_not_name_are_ignored(sharded: Path) -> None:
    edit(sharded / INDEX, lambda index: index["weight_map"].pop("model.norm.weight") and None)
    checkpoint = open_checkpoint(sharded)
    assert "model.norm.weight" not in checkpoint.tensors
    assert any("model.norm.weight" in problem for problem in checkpoint.problems)


def test_single_file(single: Path) -> None:
    assert {*open_checkpoint(str(single)).tensors} == {*llama_weights()}


@pytest.mark.parametrize("name", ["weights.safetensors", "model-00001-of-00001.safetensors"])
def test_one_file_of_another_name(single: Path, name: str) -> None:
    (single / "model.safetensors").rename(single / name)
    assert [path.name for path in open_checkpoint(single).weight_files] == [name]


def test_complete_set_of_shards_without_an_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    assert {*open_checkpoint(sharded).tensors} == {*llama_weights()}


def test_safetensors_before_torch_files(single: Path) -> None:
    (single / "pytorch_model.bin").write_bytes(b"never opened")
    assert [path.name for path in open_checkpoint(single).weight_files] == ["model.safetensors"]


def test_config_is_checked_before_the_weights(sharded: Path) -> None:
    (sharded / FIRST).unlink()

    def check(config: Any) -> None:
        raise UnsupportedError(config["model_type"])

    with pytest.raises(UnsupportedError, match="llama"):
        open_checkpoint(sharded, check_config=check)


def test_side_files(single: Path) -> None:
    carried = [
        "LICENSE",
        "LICENSE.txt",
        "NOTICE",
        "README.md",
        "USE_POLICY.md",
        "added_tokens.json",
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
        "chat_template.json",
        "generation_config.json",
        "merges.txt",
        "modeling_tiny.py",
        "preprocessor_config.json",
        "processor_config.json",
        "qwen.tiktoken",
        "sentencepiece.bpe.model",
        "source.spm",
        "special_tokens_map.json",
        "tokenizer.model",
        "video_preprocessor_config.json",
        "vocab.json",
        "vocab.txt",
    ]
    others = ["model.gguf", "model.onnx", "optimizer.pt", "figure.png", "trainer_state.json", "vocab.bin", "sub/x.py"]
    for name in carried + others:
        (single / name).parent.mkdir(exist_ok=True)
        (single / name).write_text("x")
    names = [path.relative_to(single).as_posix() for path in open_checkpoint(single).side_files]
    assert names == sorted([*carried, "tokenizer.json", "tokenizer_config.json"])


Break = Callable[[Path], Any]
BROKEN_SHARDS: list[tuple[str, Break, type[MlxportError], str]] = [
    (
        "shard missing",
        lambda d: (d / SECOND).unlink(),
        WeightsError,
        f"shard {SECOND}, which {INDEX} names, is missing",
    ),
    ("shard truncated", lambda d: os.truncate(d / FIRST, 600), WeightsError, f"{FIRST} is truncated"),
    ("shard is an LFS pointer", lambda d: (d / SECOND).write_text(LFS), WeightsError, f"{SECOND} is a git-LFS pointer"),
    (
        "no index, shard missing",
        lambda d: [(d / n).unlink() for n in (INDEX, FIRST)],
        WeightsError,
        f"{FIRST} is missing",
    ),
    (
        "no index, several files",
        lambda d: [
            (d / INDEX).unlink(),
            (d / FIRST).rename(d / "a.safetensors"),
            (d / SECOND).rename(d / "b.safetensors"),
        ],
        WeightsError,
        "2 weight files and no index",
    ),
    ("index not JSON", lambda d: (d / INDEX).write_text("{"), WeightsError, "is not JSON"),
    ("index a list", lambda d: (d / INDEX).write_text("[]"), WeightsError, "not a JSON object"),
    ("index without map", lambda d: (d / INDEX).write_text("{}"), WeightsError, "no weight_map"),
    ("index with an empty map", lambda d: (d / INDEX).write_text('{"weight_map": {}}'), WeightsError, "no weight_map"),
    ("index an LFS pointer", lambda d: (d / INDEX).write_text(LFS), WeightsError, "git-LFS pointer"),
    (
        "index names a tensor twice",
        lambda d: (d / INDEX).write_text('{"weight_map": {"a": "x", "a": "y"}}'),
        WeightsError,
        "'a' is given twice",
    ),
    (
        "tensor missing from its shard",
        lambda d: edit(d / INDEX, lambda i: i["weight_map"].update(lost=FIRST)),
        WeightsError,
        "does not hold the tensor 'lost'",
    ),
    ("shard is a directory", lambda d: [(d / FIRST).unlink(), (d / FIRST).mkdir()], WeightsError, "not a regular file"),
    ("shard is a pipe", lambda d: [(d / FIRST).unlink(), os.mkfifo(d / FIRST)], WeightsError, "not a regular file"),
    (
        "shard is a link to a device",
        lambda d: [(d / FIRST).unlink(), (d / FIRST).symlink_to("/dev/zero")],
        UnsafeError,
        "leaves the folder",
    ),
    (
        "shard is a link to itself",
        lambda d: [(d / FIRST).unlink(), (d / FIRST).symlink_to(FIRST)],
        SourceError,
        FIRST,
    ),
]
for _name in (
    "../outside.safetensors",
    "/etc/passwd",
    "a/../../outside",
    "..",
    ".",
    "",
    "a\\..\\b",
    "C:/x",
    "a//b",
    "./a",
    "x\0y",
):
    BROKEN_SHARDS.append(
        (
            f"index names {_name!r}",
            lambda d, n=_name: edit(d / INDEX, lambda i: i["weight_map"].update(a=n)),
            UnsafeError,
            f"{_name!r} is not a plain path",
        )
    )
for _value in (3, None, ["x"], {"a": 1}):
    BROKEN_SHARDS.append(
        (
            f"index names {_value!r}",
            lambda d, v=_value: edit(d / INDEX, lambda i: i["weight_map"].update(a=v)),
            UnsafeError,
            "is not a name",
        )
    )


@pytest.mark.parametrize(
    ("change", "kind", "message"), [case[1:] for case in BROKEN_SHARDS], ids=[case[0] for case in BROKEN_SHARDS]
)
def test_broken_weights(sharded: Path, change: Break, kind: type[MlxportError], message: str) -> None:
    change(sharded)
    with pytest.raises(kind) as caught:
        open_checkpoint(sharded)
    assert message in caught.value.message
    assert caught.value.hint


def only(*names: str) -> Break:
    """Replace the folder's content by these files."""

    def change(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        for name in names:
            (folder / name).write_text('{"model_type": "llama"}' if name == "config.json" else "{}")

    return change


BROKEN_FOLDERS: list[tuple[str, Break, type[MlxportError], str]] = [
    ("empty", only(), SourceError, "is empty"),
    ("no config", lambda d: (d / "config.json").unlink(), ConfigError, "no config.json"),
    ("adapter", only("adapter_config.json", "adapter_model.safetensors"), SourceError, "adapter-only"),
    (
        "adapter with config",
        only("config.json", "adapter_config.json", "adapter_model.bin"),
        SourceError,
        "adapter-only",
    ),
    ("Meta format", only("params.json", "consolidated.00.pth"), UnsupportedError, "Meta or Mistral"),
    ("OpenCLIP", only("open_clip_config.json", "open_clip_pytorch_model.bin"), ConfigError, "model_cfg is 'None'"),
    ("Mistral format", only("config.json", "consolidated.safetensors"), UnsupportedError, "Meta or Mistral"),
    ("GGUF", only("model.Q4_K_M.gguf"), WeightsError, "gguf is"),
    ("GGUF with config", only("config.json", "model.gguf"), WeightsError, "gguf is"),
    ("diffusers", only("model_index.json"), UnsupportedError, "diffusers"),
    ("TensorFlow", only("config.json", "tf_model.h5"), UnsupportedError, "another framework"),
    ("no weights", only("config.json", "tokenizer.json"), WeightsError, "holds no weights"),
    ("optimizer only", only("config.json", "optimizer.pt", "training_args.bin"), WeightsError, "holds no weights"),
    (
        "tokenizer is an LFS pointer",
        lambda d: (d / "tokenizer.json").write_text(LFS),
        TokenizerError,
        "git-LFS pointer",
    ),
    (
        "tokenizer is a link out",
        lambda d: [(d / "tokenizer.json").unlink(), (d / "tokenizer.json").symlink_to("/etc/passwd")],
        UnsafeError,
        "leaves the folder",
    ),
    (
        "config is a link out",
        lambda d: [(d / "config.json").unlink(), (d / "config.json").symlink_to("/etc/passwd")],
        UnsafeError,
        "leaves the folder",
    ),
    (
        "config is a pipe",
        lambda d: [(d / "config.json").unlink(), os.mkfifo(d / "config.json")],
        ConfigError,
        "not a regular file",
    ),
]


@pytest.mark.parametrize(
    ("change", "kind", "message"), [case[1:] for case in BROKEN_FOLDERS], ids=[case[0] for case in BROKEN_FOLDERS]
)
def test_broken_folder(single: Path, change: Break, kind: type[MlxportError], message: str) -> None:
    change(single)
    with pytest.raises(kind) as caught:
        open_checkpoint(single)
    assert message in caught.value.message
    assert str(single) in caught.value.message
    assert caught.value.hint


def as_cache(folder: Path, top: Path) -> Path:
    """The folder as the hub's cache has it: a snapshot of links into ``blobs``."""
    repository = top / "models--org--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in folder.iterdir():
        path.rename(repository / "blobs" / f"blob-of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-of-{path.name}")
    return snapshot


def test_links_of_a_hub_snapshot_are_fine(sharded: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(as_cache(sharded, tmp_path / "hub"))
    assert {path.name for path in checkpoint.weight_files} == {FIRST, SECOND}
    assert all(read_rows(ref).nbytes == ref.nbytes for ref in checkpoint.tensors.values())


def test_links_within_the_folder_are_fine(sharded: Path) -> None:
    (sharded / FIRST).rename(sharded / "data")
    (sharded / FIRST).symlink_to("data")
    assert {path.name for path in open_checkpoint(sharded).weight_files} == {FIRST, SECOND}


def test_a_folder_that_is_itself_a_link_is_fine(sharded: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(sharded)
    assert open_checkpoint(tmp_path / "link").tensors.keys() == open_checkpoint(sharded).tensors.keys()


def outside(sharded: Path, tmp_path: Path) -> Path:
    (tmp_path / "secret").mkdir()
    return (sharded / FIRST).rename(tmp_path / "secret" / FIRST)


def test_link_out_of_a_plain_folder(sharded: Path, tmp_path: Path) -> None:
    (sharded / FIRST).symlink_to(outside(sharded, tmp_path))
    with pytest.raises(UnsafeError, match="leaves the folder"):
        open_checkpoint(sharded)


def test_link_out_of_something_unpacked_to_look_like_a_cache(sharded: Path, tmp_path: Path) -> None:
    secret = outside(sharded, tmp_path)
    snapshot = as_cache(sharded, tmp_path / "unpacked")
    blob = snapshot.parent.parent / "blobs" / "x"
    blob.symlink_to(secret)
    (snapshot / FIRST).symlink_to("../../blobs/x")
    with pytest.raises(UnsafeError, match="leaves the folder"):
        open_checkpoint(snapshot)


def test_blobs_that_are_themselves_a_link(sharded: Path, tmp_path: Path) -> None:
    snapshot = as_cache(sharded, tmp_path / "unpacked")
    blobs = snapshot.parent.parent / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeError, match="leaves the folder"):
        open_checkpoint(snapshot)


def test_linked_folder_on_the_way(sharded: Path, tmp_path: Path) -> None:
    outside(sharded, tmp_path)
    (sharded / "part").symlink_to(tmp_path / "secret")
    edit(sharded / INDEX, lambda index: index["weight_map"].update({n: f"part/{FIRST}" for n in index["weight_map"]}))
    with pytest.raises(UnsafeError, match="leaves the folder"):
        open_checkpoint(sharded)


def test_shards_in_a_real_subfolder(sharded: Path) -> None:
    (sharded / "part").mkdir()
    for name in (FIRST, SECOND):
        (sharded / name).rename(sharded / "part" / name)
    edit(
        sharded / INDEX,
        lambda index: index["weight_map"].update({n: f"part/{f}" for n, f in index["weight_map"].items()}),
    )
    assert len(open_checkpoint(sharded).tensors) == 6


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./models/x", "no such folder"),
        ("/nowhere/x", "no such folder"),
        ("../x/y", "no such folder"),
        ("~/nowhere-at-all", "no such folder"),
        ("a/b/c", "no such folder"),
        ("models\\x", "no such folder"),
        (Path("org/tiny"), "no such folder"),
        ("https://huggingface.co/org/tiny", "is an address"),
        ("", "."),
        ("what is this?", "neither a folder nor the id"),
        ("x" * 5000, "neither a folder nor the id"),
        ("a\0b", "neither a folder nor the id"),
        ("tiny/file.safetensors", "single weights file"),
        ("tiny/file.gguf", "is empty"),
        ("tiny/file.zip", "an archive"),
        ("tiny/file.txt", "is not a folder"),
    ],
)
def test_what_is_not_a_source(source: Any, message: str, single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(single.parent)
    for suffix in ("safetensors", "gguf", "zip", "txt"):
        (single / f"file.{suffix}").touch()
    with pytest.raises(MlxportError) as caught:
        open_checkpoint(source)
    assert message in caught.value.message
    assert caught.value.hint


def test_a_folder_has_no_revision(single: Path) -> None:
    with pytest.raises(SourceError, match="no revisions"):
        open_checkpoint(single, revision="main")
