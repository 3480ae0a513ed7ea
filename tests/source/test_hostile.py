"""Whatever is done to header, index and config: an error of ours comes out, or tensors of the promised size."""

from __future__ import annotations

import copy
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from little_llama import llama_weights
from safetensors.numpy import save_file

from mlxport.errors import ConfigError, MlxportError
from mlxport.source import jsonfile, open_checkpoint, read_rows

INDEX = "model.safetensors.index.json"
HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64, 2**70, -(2**63), 10**400]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["../x", "/etc/passwd", "a\\b", "\0", "F4", "F32", "BF16", "U8", "model-00001-of-00002.safetensors", "\ud800"]
    ),
    st.lists(st.integers(-1, 300), max_size=3),
    st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "weight_map", "text_config"]), st.integers()),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within a JSON value."""
    found = [path]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += places(inner, (*path, key))
    return found


@st.composite
def json_mutation(draw: st.DrawFn) -> Callable[[Any], Any]:
    """Replace, remove or add a value somewhere in a JSON value."""
    where = draw(st.integers(0, 10_000))
    how = draw(st.sampled_from(["replace", "remove", "add", "nudge"]))
    value = draw(HOSTILE)
    step = draw(st.sampled_from([-8, -1, 1, 8, 1 << 40]))

    def mutate(document: Any) -> Any:
        document = copy.deepcopy(document)
        *parents, last = [*places(document)[1:]][where % max(1, len(places(document)) - 1)] or ("",)
        inner = document
        for key in parents:
            inner = inner[key]
        if how == "remove":
            del inner[last]
        elif how == "add" and isinstance(inner, dict):
            inner["added" if where % 2 else "model.extra.weight"] = value
        elif how == "nudge" and type(inner[last]) is int:
            inner[last] += step
        else:
            inner[last] = value
        return document

    return mutate


@st.composite
def byte_mutation(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Flip, cut, insert or repeat bytes."""
    where = draw(st.floats(0, 1, exclude_max=True))
    how = draw(st.sampled_from(["flip", "cut", "end", "insert", "repeat"]))
    junk = draw(st.binary(min_size=1, max_size=9))

    def mutate(data: bytes) -> bytes:
        at = int(where * len(data))
        match how:
            case "flip":
                return data[:at] + bytes([data[at] ^ junk[0]]) + data[at + 1 :]
            case "cut":
                return data[:at] + data[at + len(junk) :]
            case "end":
                return data[:at]
            case "insert":
                return data[:at] + junk + data[at:]
        return data[:at] + data[max(0, at - 40) :]

    return mutate


def make(folder: Path) -> None:
    weights = llama_weights()
    names = [*weights]
    save_file({name: weights[name] for name in names[:3]}, folder / "model-00001-of-00002.safetensors")
    save_file({name: weights[name] for name in names[3:]}, folder / "model-00002-of-00002.safetensors")
    weight_map = {name: f"model-0000{1 + (number > 2)}-of-00002.safetensors" for number, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 3}, "weight_map": weight_map}))
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "vocab_size": 16,
        "text_config": {"hidden_size": 8, "num_hidden_layers": 2},
        "auto_map": {"AutoModel": "x.X"},
    }
    (folder / "config.json").write_text(json.dumps(config))


def open_and_read(folder: Path) -> None:
    try:
        checkpoint = open_checkpoint(folder)
        for ref in checkpoint.tensors.values():
            assert read_rows(ref).nbytes == ref.nbytes
        # What came through can be shown.
        "".join([*checkpoint.tensors, *checkpoint.problems]).encode()
    except MlxportError as error:
        assert error.message
        assert str(error).encode()


MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@MANY
@given(
    st.sampled_from(["config.json", INDEX, "model-00001-of-00002.safetensors"]),
    st.lists(json_mutation(), min_size=1, max_size=3),
)
def test_json_mutations(name: str, mutations: list[Callable[[Any], Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        path = Path(folder) / name
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0] if name.endswith(".safetensors") else 0
        document = json.loads(data[8 : 8 + length] if length else data)
        for mutate in mutations:
            if isinstance(document, dict) and document:
                document = mutate(document)
        text = json.dumps(document).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :] if length else text)
        open_and_read(Path(folder))


@MANY
@given(
    st.sampled_from(["config.json", INDEX, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
    st.lists(byte_mutation(), min_size=1, max_size=3),
)
def test_byte_mutations(name: str, mutations: list[Callable[[bytes], bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        path = Path(folder) / name
        data = path.read_bytes()
        for mutate in mutations:
            data = mutate(data) if data else data
        path.write_bytes(data)
        open_and_read(Path(folder))


@settings(MANY, max_examples=150)
@given(st.lists(byte_mutation(), min_size=1, max_size=2), st.booleans())
def test_torch_file_mutations(mutations: list[Callable[[bytes], bytes]], pickle_only: bool) -> None:
    torch = pytest.importorskip("torch")
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        for old in Path(folder).glob("model*"):
            old.unlink()
        path = Path(folder) / "pytorch_model.bin"
        torch.save({name: torch.from_numpy(array) for name, array in llama_weights().items()}, path)
        if pickle_only:
            # Bytes of the pickle, in an archive that is otherwise whole.
            with zipfile.ZipFile(path) as archive:
                records = {record: archive.read(record) for record in archive.namelist()}
            with zipfile.ZipFile(path, "w") as archive:
                for record, data in records.items():
                    for mutate in mutations if record.endswith("data.pkl") else ():
                        data = mutate(data) if data else data
                    archive.writestr(record, data)
        else:
            data = path.read_bytes()
            for mutate in mutations:
                data = mutate(data) if data else data
            path.write_bytes(data)
        open_and_read(Path(folder))


@pytest.mark.parametrize("filler", [b"[],", b"1.5,"])
def test_more_values_than_any_file_has_are_not_made(filler, tmp_path, monkeypatch):
    monkeypatch.setattr(jsonfile, "MAX_VALUES", 1000)
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": [' + filler * 999 + b"0]}")
    assert len(jsonfile.read_object(path, ConfigError)["a"]) == 1000
    path.write_bytes(b'{"a": [' + filler * 1001 + b"0]}")
    with pytest.raises(ConfigError, match="config.json holds more than 1,000 values"):
        jsonfile.read_object(path, ConfigError)
