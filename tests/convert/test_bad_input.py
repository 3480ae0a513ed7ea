"""Bad input: one clear error with a remedy, exit code 1 or 2, no traceback, and nothing is touched."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from checkpoints import INDEX, config, hash_tree, read_raw, save, weights, write_raw, write_tokenizer
from refusals import Case, check_error

SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def change_config(**changes: object) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(config(**changes)))  # type: ignore[arg-type]


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def change_header(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def break_it(folder: Path) -> None:
        header, data = read_raw(folder / SHARDS[1])
        change(header)
        write_raw(folder / SHARDS[1], header, data)

    return break_it


def change_tensor(**changes: object) -> Callable[[Path], object]:
    """Change the entry of the last tensor of the second shard."""
    return change_header(lambda header: header[[*header][-1]].update(changes))


def overlap(header: dict) -> None:
    first, second = [name for name in header if name != "__metadata__"][:2]
    size = header[second]["data_offsets"][1] - header[second]["data_offsets"][0]
    header[second]["data_offsets"] = [header[first]["data_offsets"][0], header[first]["data_offsets"][0] + size]


def repeat_key(folder: Path) -> None:
    header, data = read_raw(folder / SHARDS[1])
    text = json.dumps(header)
    name = json.dumps([*header][1])
    write_raw(folder / SHARDS[1], text.replace(name + ":", f"{name}: 1, {name}:", 1).encode(), data)


def truncate(folder: Path) -> None:
    path = folder / SHARDS[1]
    os.truncate(path, path.stat().st_size - 100)


def long_header(folder: Path) -> None:
    (folder / SHARDS[1]).write_bytes((1 << 40).to_bytes(8, "little") + b"{}")


def huge_header(folder: Path) -> None:
    with open(folder / SHARDS[1], "wb") as file:
        file.write((150_000_000).to_bytes(8, "little") + b'{"')
        file.truncate(150_000_100)


def rename_in_index(file: str) -> Callable[[Path], object]:
    def break_it(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"]["lm_head.weight"] = file
        (folder / INDEX).write_text(json.dumps(index))

    return break_it


def extra_in_index(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.layers.0.absent.weight"] = SHARDS[0]
    (folder / INDEX).write_text(json.dumps(index))


def link_out(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    shutil.move(folder / SHARDS[1], outside)
    (folder / SHARDS[1]).symlink_to(outside)


def link_tokenizer_out(folder: Path) -> None:
    secret = folder.parent / "secret.json"
    shutil.move(folder / "tokenizer.json", secret)
    (folder / "tokenizer.json").symlink_to("../secret.json")


class Payload:
    """Unpickling this makes the file; loading with torch's defaults of old would do it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.marker), "w")


def marker_of(folder: Path) -> Path:
    return folder.parent / "EXECUTED"


def as_torch_zip(folder: Path, data: bytes, name: str = "pytorch_model.bin") -> None:
    remove(INDEX, *SHARDS)(folder)
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")


def evil_zip(folder: Path) -> None:
    as_torch_zip(folder, pickle.dumps({"lm_head.weight": Payload(marker_of(folder))}, protocol=2))


def evil_raw(folder: Path) -> None:
    remove(INDEX, *SHARDS)(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker_of(folder)), protocol=2))


def evil_code(folder: Path) -> None:
    code = f"open({str(marker_of(folder))!r}, 'w')\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py"):
        (folder / name).write_text(code)
    auto = {"AutoConfig": "configuration_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
    change_config(auto_map=auto, model_type="evil")(folder)


def evil_tokenizer(folder: Path) -> None:
    """Only the tokenizer names code: nothing of it may run, whatever else happens."""
    (folder / "tokenization_evil.py").write_text(f"open({str(marker_of(folder))!r}, 'w')\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_evil.T", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def only(files: dict[str, str]) -> Callable[[Path], object]:
    def break_it(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        for name, content in files.items():
            (folder / name).write_text(content)

    return break_it


def overflow(folder: Path) -> None:
    arrays = weights()
    arrays["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e30
    remove(INDEX, *SHARDS)(folder)
    save(folder / "model.safetensors", arrays, "F32")


def fifo(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


def small_tokenizer(tokens: int) -> Callable[[Path], object]:
    return lambda folder: write_tokenizer(folder, tokens)


def unknown_type(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["type"] = "Magic"
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def long_vocabulary(folder: Path) -> None:
    remove("tokenizer.json")(folder)
    (folder / "vocab.txt").write_text("".join(f"word{number}\n" for number in range(400)))


C = Case
CHECKPOINTS = [
    C("unsupported model type", change_config(model_type="nonesuch"), ("nonesuch",)),
    C("no model type", write("config.json", '{"hidden_size": 64}'), ("config.json", "model_type")),
    C("model type is a number", change_config(model_type=7), ("config.json", "model_type")),
    C("model type is a path", change_config(model_type="../../evil"), ("evil",)),
    C("missing shard", remove(SHARDS[1]), (SHARDS[1],)),
    C("truncated shard", truncate, (SHARDS[1],)),
    C("empty shard", write(SHARDS[1], b""), (SHARDS[1],)),
    C("shard without index", remove(INDEX, SHARDS[2]), (SHARDS[2],)),
    C("header longer than the file", long_header, (SHARDS[1],)),
    C("header of 150 MB", huge_header, (SHARDS[1],)),
    C("header is not JSON", lambda f: write_raw(f / SHARDS[1], b"{nonsense", b""), (SHARDS[1],)),
    C("overlapping tensors", change_header(overlap), (SHARDS[1],)),
    C("offsets out of range", change_tensor(data_offsets=[0, 1 << 50]), (SHARDS[1],)),
    C("negative offsets", change_tensor(data_offsets=[-8, 0]), (SHARDS[1],)),
    C("unknown dtype", change_tensor(dtype="F7"), (SHARDS[1], "F7")),
    C("shape does not match bytes", change_tensor(shape=[3, 5]), (SHARDS[1],)),
    C("huge shape", change_tensor(shape=[1 << 40, 1 << 40]), (SHARDS[1],)),
    C("duplicate keys", repeat_key, (SHARDS[1],)),
    C("LFS pointer", write(SHARDS[1], LFS), (SHARDS[1], "LFS")),
    C("LFS tokenizer", write("tokenizer.json", LFS), ("tokenizer.json", "LFS")),
    C("web page", write(SHARDS[1], "<!DOCTYPE html><html>login</html>"), (SHARDS[1],)),
    C("index names ../outside", rename_in_index("../outside.safetensors"), (INDEX, "../outside")),
    C("index names an absolute path", rename_in_index("/etc/passwd"), (INDEX, "/etc/passwd")),
    C("index names an absent tensor", extra_in_index, (SHARDS[0], "model.layers.0.absent.weight")),
    C("index is not JSON", write(INDEX, "nope"), (INDEX,)),
    C("index without weight map", write(INDEX, "{}"), (INDEX, "weight_map")),
    C("index of numbers", write(INDEX, '{"weight_map": {"a": 1}}'), (INDEX,)),
    C("symlink out of the folder", link_out, (SHARDS[1], "symlink")),
    C("tokenizer is a symlink out", link_tokenizer_out, ("tokenizer.json", "symlink")),
    C("tokenizer is a pipe", fifo, ("tokenizer.json",)),
    C("pickle with code, zip", evil_zip, ("pytorch_model.bin",)),
    C("pickle with code, zip, verified", evil_zip, ("pytorch_model.bin",), ("--verify", "auto")),
    C("pickle with code, bare", evil_raw, ("pytorch_model.bin",)),
    C("auto_map without the flag", evil_code, ("auto_map", "config.json"), ("--verify", "auto")),
    C("config missing", remove("config.json"), ("config.json",)),
    C("config is not JSON", write("config.json", "{'a': 1}"), ("config.json",)),
    C("config is a list", write("config.json", "[1]"), ("config.json",)),
    C("config is not UTF-8", write("config.json", b"\xff\xfe{}"), ("config.json",)),
    C("config nested too deep", write("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000), ("config.json",)),
    C("config has another hidden size", change_config(hidden_size=96), ("config.json", "96")),
    C("config has more layers", change_config(layers=3), ("config.json", "3 layers")),
    C("config has fewer layers", change_config(layers=1), ("config.json", "model.layers.1.")),
    C("config has another vocabulary", change_config(vocab_size=500), ("500",)),
    C("config has no hidden size", write("config.json", '{"model_type": "llama"}'), ("config.json",)),
    C("hidden size is text", change_config(hidden_size="64"), ("config.json",)),
    C("no layers", change_config(num_hidden_layers=0), ("config.json", "num_hidden_layers is 0")),
    C("a negative vocabulary", change_config(vocab_size=-1), ("config.json", "vocab_size is -1")),
    C("tokenizer missing", remove("tokenizer.json"), ("source", "tokenizer")),
    C("tokenizer is not JSON", write("tokenizer.json", "nope"), ("tokenizer.json",)),
    C("tokenizer without a model", write("tokenizer.json", "{}"), ("tokenizer.json",)),
    C("tokenizer of an unknown type", unknown_type, ("tokenizer.json", "'Magic'", "BPE")),
    C("tokenizer config is not JSON", write("tokenizer_config.json", "{"), ("tokenizer_config.json", "not JSON")),
    C("tokenizer config is a list", write("tokenizer_config.json", "[]"), ("tokenizer_config.json", "object")),
    C("junk as a sentencepiece model", write("tokenizer.model", b"junk"), ("tokenizer.model", "sentencepiece")),
    C("vocab.txt for another vocabulary", long_vocabulary, ("vocab.txt", "another vocabulary", "320")),
    C("tokenizer for another vocabulary", small_tokenizer(400), ("tokenizer.json", "vocabulary")),
    C(
        "adapter only",
        only({"adapter_config.json": "{}", "adapter_model.safetensors": ""}),
        ("adapter-only", "source"),
    ),
    C("empty folder", only({}), ("source", "empty")),
    C("GGUF only", only({"model.gguf": "GGUF"}), ("GGUF",)),
    C("diffusers", only({"model_index.json": "{}"}), ("diffusers",)),
    C("no weights", remove(INDEX, *SHARDS), ("source", "no weights")),
    C("float16 overflow", overflow, ("model.layers.1.mlp.up_proj.weight", "float16"), ("--dtype", "float16")),
]
OPTIONS = [
    C("dtype", None, ("--dtype", "int8"), ("--dtype", "int8"), 2),
    C("verify", None, ("--verify", "maybe"), ("--verify", "maybe"), 2),
    C("layout", None, ("--layout", "gguf"), ("--layout", "gguf"), 2),
    C("shard by", None, ("--shard-by", "colour"), ("--shard-by", "colour"), 2),
    C("shard size", None, ("many",), ("--max-shard-size", "many"), 2),
    C("shard size 0", None, ("0",), ("--max-shard-size", "0"), 2),
    C("group 48", None, ("48",), ("-q", "4", "--q-group-size", "48"), 2),
    C("7 bits", None, ("7",), ("-q", "7"), 2),
    C("unknown mode", None, ("mxfp3",), ("-q", "mxfp3"), 2),
    C("bits without quantize", None, ("--q-bits",), ("--q-bits", "4"), 2),
    C("group without quantize", None, ("--q-group-size",), ("--q-group-size", "64"), 2),
    C("mode without quantize", None, ("--q-mode",), ("--q-mode", "mxfp4"), 2),
    C("contradicting bits", None, ("--q-bits",), ("-q", "4", "--q-bits", "8"), 2),
    C("absent recipe", None, ("nowhere.toml",), ("--recipe", "nowhere.toml"), 2),
    C("not a number", None, ("--q-bits",), ("-q", "--q-bits", "four"), 2),
    C("unknown option", None, ("--fast",), ("--fast",), 2),
    C("a third argument", None, ("third",), ("third",), 2),
    C("revision of a folder", None, ("source",), ("--revision", "main"), 1),
]


@pytest.mark.parametrize("case", CHECKPOINTS + OPTIONS, ids=lambda case: case.name)
def test_is_refused_and_nothing_is_touched(case, source, converted, tmp_path, mlxport):
    if case.break_it is not None:
        case.break_it(source)
    before = hash_tree(source)
    existing = Path(shutil.copytree(converted, tmp_path / "existing"))
    old = hash_tree(existing)
    options = ("--verify", "none", *case.options)  # the last one of an option counts
    check_error(mlxport("convert", source, tmp_path / "out", *options), case)
    assert not os.path.lexists(tmp_path / "out")
    check_error(mlxport("convert", source, existing, "--overwrite", *options), case)
    assert hash_tree(existing) == old
    assert hash_tree(source) == before
    assert not marker_of(source).exists(), "code of the checkpoint ran"


@pytest.mark.parametrize("break_it", [evil_zip, evil_raw, evil_code, evil_tokenizer], ids=lambda f: f.__name__)
@pytest.mark.parametrize("command", ["convert", "inspect", "verify", "generate"])
def test_code_of_a_checkpoint_never_runs(break_it, command, source, converted, tmp_path, mlxport):
    """Neither pickles nor Python files, whichever command is given the folder."""
    break_it(source)
    arguments = {
        "convert": ("convert", source, tmp_path / "out"),
        "inspect": ("inspect", source),
        "verify": ("verify", converted, "--against", source),
        "generate": ("generate", source, "-p", "x", "-m", "1"),
    }[command]
    result = mlxport(*arguments)
    assert not marker_of(source).exists()
    assert "Traceback" not in result.err
    assert "bug in mlxport" not in result.err


def test_the_pickle_would_execute(source):
    """The payload is real: plain pickle runs it."""
    evil_raw(source)
    pickle.loads((source / "pytorch_model.bin").read_bytes()).close()
    assert marker_of(source).exists()


def test_nan_in_the_source_is_counted_and_named(source, tmp_path, mlxport):
    arrays = weights()
    arrays["model.norm.weight"][:3] = np.nan
    arrays["lm_head.weight"][0, 0] = np.inf
    save(source / SHARDS[2], {name: arrays[name] for name in read_raw(source / SHARDS[2])[0] if name in arrays})
    result = mlxport("convert", source, tmp_path / "out", "--verify", "none")
    assert result.code == 0
    assert "4 NaN or infinite values" in result.err
    assert "model.norm.weight (3)" in result.err and "lm_head.weight (1)" in result.err
    record = json.loads((tmp_path / "out/mlxport.json").read_text())
    assert record["nonfinite"] == {"lm_head.weight": 1, "model.norm.weight": 3}


def test_overflow_can_be_accepted_and_goes_on_where_it_was_refused(source, tmp_path, mlxport):
    overflow(source)
    arguments = ("convert", source, tmp_path / "out", "--verify", "none", "--dtype", "float16", "--json")
    assert json.loads(mlxport(*arguments).out)["error"]["kind"] == "NumericsError"
    report = json.loads(mlxport(*arguments, "--allow-overflow").out)
    assert report["overflowed"] == {"model.layers.1.mlp.up_proj.weight": 1}
    assert report["resumed"] == ["model.safetensors"]
