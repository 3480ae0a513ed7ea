"""Mutated checkpoints: whatever headers, index and config say, one of our errors or a whole output, never a part."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import INDEX, bounded_memory, config, hash_tree, read_raw, weights, write_llama, write_raw
from fuzzing import fuzz
from mlxport import MlxportError, convert

SHARD = "model-00002-of-00002.safetensors"
NAMES = [*weights()]
NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 63, 64, 65, 2**31, 2**53, 2**63, 2**64, 10**400, -(2**63), 0.5, 1e308])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.integers(-10, 400),
    st.sampled_from(
        ["", "x", "../x", "/etc/passwd", "model.norm.weight", "float16", "BF16", "\0", "\ud800", "é" * 300]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
DTYPES = st.sampled_from(["BF16", "F16", "F32", "F64", "I64", "I8", "U8", "BOOL", "F8_E4M3", "C64", "f32", "", "Q4"])
OFFSETS = st.one_of(st.lists(st.integers(-9, 90_000), max_size=3), st.lists(NUMBERS, max_size=2), SCALARS)
SHAPES = st.one_of(st.lists(st.integers(-1, 400), max_size=4), st.lists(NUMBERS, max_size=3), SCALARS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("fuzz") / "whole", shards=2)


@pytest.fixture(scope="module", autouse=True)
def bounded() -> Iterator[None]:
    import mlxport.layouts.mlx_lm.opening  # noqa: F401  what is mapped by imports does not count

    with bounded_memory():
        yield


@pytest.fixture
def bench(tmp_path: Path, whole: Path) -> Iterator[Bench]:
    yield Bench(tmp_path, whole)


class Bench:
    """Converts one mutated copy after another."""

    def __init__(self, folder: Path, whole: Path) -> None:
        self.source, self.out, self.whole = folder / "source", folder / "out", whole

    def fresh(self) -> Path:
        for folder in (self.source, self.out, self.out.with_name("out.partial")):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.whole, self.source)
        return self.source

    def convert(self, **options: Any) -> None:
        """One of our errors with nothing under the final name, or an output that is whole."""
        before = hash_tree(self.source)
        try:
            convert(self.source, self.out, verify="none", **options)
        except MlxportError as error:
            assert error.message and "\n" not in error.message.splitlines()[0]
            error.message.encode()  # it can be printed
            assert not os.path.lexists(self.out)
        else:
            index = json.loads((self.out / INDEX).read_text())
            held = {n: f.name for f in self.out.glob("*.safetensors") for n in read_raw(f)[0] if n != "__metadata__"}
            assert index["weight_map"] == held
            assert (self.out / "mlxport.json").is_file()
            assert not self.out.with_name("out.partial").exists()
        assert hash_tree(self.source) == before


@fuzz(150)
@given(data=st.data())
def test_headers(bench, data):
    folder = bench.fresh()
    header, content = read_raw(folder / SHARD)
    names = [name for name in header if name != "__metadata__"]
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(names))
        kind = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "entry", "gone", "renamed", "swapped"]))
        entry = header.get(name)
        if kind == "gone":
            header.pop(name, None)
        elif kind == "entry" or not isinstance(entry, dict):
            header[name] = data.draw(VALUES)
        elif kind == "renamed":
            header[data.draw(st.sampled_from(NAMES) | st.text(max_size=5))] = header.pop(name)
        elif kind == "swapped":
            other = header.get(data.draw(st.sampled_from(names)))
            if isinstance(other, dict):
                header[name] = {**other}
        else:
            drawn = {"dtype": DTYPES | SCALARS, "shape": SHAPES, "data_offsets": OFFSETS}[kind]
            header[name] = {**entry, kind: data.draw(drawn)}
    write_raw(folder / SHARD, header, content)
    bench.convert()


@fuzz(80)
@given(position=st.integers(0, 4000), replacement=st.binary(min_size=0, max_size=12), length=st.integers(0, 12))
def test_header_bytes(bench, position, replacement, length):
    path = bench.fresh() / SHARD
    content = path.read_bytes()
    path.write_bytes(content[:position] + replacement + content[position + length :])
    bench.convert()


@fuzz(40)
@given(keep=st.integers(0, 140_000))
def test_truncation(bench, keep):
    path = bench.fresh() / SHARD
    os.truncate(path, min(keep, path.stat().st_size))
    bench.convert()


@fuzz(80)
@given(data=st.data())
def test_index(bench, data):
    folder = bench.fresh()
    index = json.loads((folder / INDEX).read_text())
    kind = data.draw(st.sampled_from(["value", "file", "gone", "extra", "weight_map", "all"]))
    names = [*index["weight_map"]]
    files = st.sampled_from([SHARD, "../source/" + SHARD, "./" + SHARD, "absent.safetensors", "config.json", "", "a/b"])
    if kind == "value":
        index["weight_map"][data.draw(st.sampled_from(names))] = data.draw(VALUES)
    elif kind == "file":
        for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4)):
            index["weight_map"][name] = data.draw(files)
    elif kind == "gone":
        for name in data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=4)):
            del index["weight_map"][name]
    elif kind == "extra":
        index["weight_map"][data.draw(st.text(max_size=8))] = data.draw(files)
    elif kind == "weight_map":
        index["weight_map"] = data.draw(VALUES)
    else:
        index = data.draw(VALUES)
    (folder / INDEX).write_text(json.dumps(index))
    bench.convert()


@fuzz(250)
@given(data=st.data())
def test_config(bench, data):
    folder = bench.fresh()
    keys = [
        *config(),
        "rope_scaling",
        "rope_theta",
        "torch_dtype",
        "quantization",
        "quantization_config",
        "sliding_window",
    ]
    keys += ["text_config", "layer_types", "auto_map", "model_file", "num_experts", "partial_rotary_factor"]
    changed = config()
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2)):
        if data.draw(st.integers(0, 4)):
            changed[key] = data.draw(VALUES)
        else:
            changed.pop(key, None)
    (folder / "config.json").write_text(json.dumps(changed))
    bench.convert()


@fuzz(60)
@given(
    name=st.sampled_from(["tokenizer.json", "tokenizer_config.json", "generation_config.json"]),
    value=VALUES,
    raw=st.binary(max_size=20),
    as_json=st.booleans(),
)
def test_side_files(bench, name, value, raw, as_json):
    folder = bench.fresh()
    (folder / name).write_bytes(json.dumps(value).encode() if as_json else raw)
    bench.convert()


@fuzz(60)
@given(data=st.data())
def test_tokenizer_values(bench, data):
    folder = bench.fresh()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    where = data.draw(st.sampled_from(["model", "vocab", "token", "added_tokens", "added"]))
    value = data.draw(VALUES)
    if where == "vocab":
        tokenizer["model"]["vocab"] = value
    elif where == "token":
        tokenizer["model"]["vocab"]["a"] = value
    elif where == "added":
        tokenizer["added_tokens"][0]["id"] = value
    else:
        tokenizer[where] = value
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    bench.convert()
