"""A pipe or device where a file is expected is refused by its name, not waited for; whoever would open it."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from pathlib import Path

import pytest

from mlxport.convert.verify import verify
from mlxport.errors import MlxportError, SourceError, UsageError
from mlxport.inspect.inspection import inspect
from mlxport.model.texts import read_text
from mlxport.quality.opened import open_output
from mlxport.run import AutoModelForCausalLM, load
from mlxport.source import open_checkpoint
from mlxport.source.safe_files import refuse_special_files


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    # Bound by a short name: a socket's path has at most 107 bytes.
    here = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


MAKE = {"pipe": os.mkfifo, "device": device, "socket": listening}
OUTPUT_FILES = [
    *("model.safetensors", "model.safetensors.index.json", "config.json", "mlxport.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json"),
    *(
        "hf_quant_config.json",
        "adapter_config.json",
        "added_tokens.json",
        "vocab.txt",
        "additional_chat_templates/a.jinja",
    ),
]
USES = {
    "load": load,
    "auto": AutoModelForCausalLM.from_pretrained,
    "quality": open_output,
    "verify": lambda folder: verify(folder, folder),
    "convert": open_checkpoint,
    "inspect": inspect,
}


@pytest.fixture
def folder(converted, tmp_path):
    return Path(shutil.copytree(converted, tmp_path / "out"))


def put(make, path: Path) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    make(path)


@pytest.mark.parametrize("name", OUTPUT_FILES)
def test_a_pipe_in_a_folder_is_refused(name, folder):
    put(os.mkfifo, folder / name)
    for use in USES.values():
        with pytest.raises(SourceError, match=f"{name} is not a regular file"):
            use(folder)


@pytest.mark.parametrize("kind", MAKE)
def test_every_kind(kind, folder):
    put(MAKE[kind], folder / "tokenizer.json")
    with pytest.raises(SourceError, match=r"tokenizer\.json is not a regular file"):
        load(folder)


def test_what_holds_no_data_is_left_alone(folder):
    for name in ("README.md", "train.py", ".hidden"):
        put(os.mkfifo, folder / name)
    (folder / "vocab.txt").symlink_to("nowhere")
    (folder / "a folder").mkdir()
    (folder / "linked.json").symlink_to(folder / "config.json")
    assert refuse_special_files(folder) is None


@pytest.mark.parametrize("flags", [("-q", "4", "--calibrate"), ("--recipe",)])
def test_files_that_the_user_names(flags, source, tmp_path, mlxport):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        result = mlxport("convert", source, tmp_path / "out", *flags, path, "--verify", "none")
        assert result.code == 2 and "not a regular file" in result.err, result


def test_a_text_from_the_shell_is_read():
    reading, writing = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(writing, b"Once upon a time"), os.close(writing)))
    writer.start()
    try:
        assert read_text(f"/dev/fd/{reading}", "the text", "give one") == "Once upon a time"
    finally:
        writer.join()
        os.close(reading)
    with pytest.raises(UsageError, match="not a regular file"):
        read_text("/dev/urandom", "the text", "give one")


def test_a_pipe_where_the_output_goes(source, tmp_path, mlxport):
    for name in ("config.json", ".mlxport-state.json"):
        out = tmp_path / name.strip(".")
        out.mkdir()
        os.mkfifo(out / name)
        result = mlxport("convert", source, out, "--overwrite", "--verify", "none")
        assert result.code == 2 and "holds something that is not a model" in result.err, result


def test_a_pipe_as_the_config_of_a_source(source, tmp_path, mlxport):
    put(os.mkfifo, source / "config.json")
    result = mlxport("convert", source, tmp_path / "out", "--verify", "none")
    assert result.code == 1 and "config.json is not a regular file" in result.err


def test_records_that_nest_or_are_none(folder):
    for text in ("[" * 100_000, '{"options": ' * 50_000, "[]", "{", "\xff"):
        (folder / "mlxport.json").write_text(text)
        for use in (load, lambda path: verify(path, path)):
            with pytest.raises(MlxportError, match=r"mlxport\.json"):
                use(folder)
