from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlxport.errors import WeightsError
from mlxport.source import read_rows
from mlxport.source.safetensors_file import read_safetensors


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def test_offsets_and_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "matrix": random.standard_normal((5, 3)),
        "half": random.standard_normal((2, 3, 4)).astype(np.float16),
        "scalar": np.array(7, np.int64),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float32),
        "ünïcode": np.arange(5, dtype=np.uint8),
    }
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, metadata={"format": "pt"})
    refs = read_safetensors(path)
    assert refs.keys() == arrays.keys()
    for name, array in arrays.items():
        assert refs[name].shape == array.shape
        assert read_rows(refs[name]).tobytes() == array.tobytes(), name
        for start in range(len(array) if array.ndim else 0):
            assert read_rows(refs[name], start, start + 1).tobytes() == array[start : start + 1].tobytes()


def test_a_file_without_tensors_is_one(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(raw({}))
    assert read_safetensors(tmp_path / "x") == {}
    (tmp_path / "x").write_bytes(raw({"__metadata__": None}))  # as MLX writes it
    assert read_safetensors(tmp_path / "x") == {}


BROKEN = [
    ("no bytes", b"", "truncated: it has 0 bytes"),
    ("half a length", b"\1\0\0", "truncated: it has 3 bytes"),
    ("header longer than the file", raw({}, length=5000), "its header has 5000 bytes, the file has 10"),
    ("a 100 MB header", raw({}, length=100_000_001), "header would have 100000001 bytes, of at most 100000000"),
    ("length overflows", raw({}, length=2**64 - 1), "header would have 18446744073709551615 bytes"),
    ("header of no bytes", raw(b""), "not a JSON object"),
    ("header is a list", raw([1, 2]), "not a JSON object"),
    ("header after a space", raw(b" {}"), "not a JSON object"),
    ("not UTF-8", raw(b'{"\xff\xfe": 1}'), "is not UTF-8"),
    ("not JSON", raw(b'{"a": }'), "is not JSON"),
    ("JSON and more", raw(b"{}{}"), "is not JSON"),
    ("NaN", raw(b'{"a": NaN}'), "NaN"),
    ("deeply nested", raw(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "is not accepted"),
    ("lone surrogate", raw(b'{"\\ud800": 1}'), "not valid Unicode"),
    (
        "duplicate tensor",
        raw(b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
        "'a' is given twice",
    ),
    ("duplicate field", raw(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' is given twice"),
    ("name with an escape sequence", raw({"\x1b[2J": entry()}, bytes(8)), "cannot be printed"),
    ("metadata not a map", raw({"__metadata__": 3}), "__metadata__"),
    ("metadata not strings", raw({"__metadata__": {"a": 1}}), "__metadata__"),
    ("entry not an object", raw({"a": 3}), "'a' is not described by exactly"),
    ("entry lacks a field", raw({"a": {"dtype": "F32", "shape": []}}), "'a' is not described by exactly"),
    ("entry has one more", raw({"a": entry(more=1)}, bytes(8)), "'a' is not described by exactly"),
    ("unknown dtype", raw({"a": entry("Q7")}, bytes(8)), "'a' has the dtype 'Q7'"),
    ("dtype below a byte", raw({"a": entry("F4", (4,), (0, 2))}, bytes(2)), "'a' has the dtype 'F4'"),
    ("dtype of six bits", raw({"a": entry("F6_E2M3", (4,), (0, 3))}, bytes(3)), "'a' has the dtype 'F6_E2M3'"),
    ("dtype not a string", raw({"a": entry(["F32"])}, bytes(8)), "'a' has the dtype ['F32']"),
    ("shape not a list", raw({"a": entry(shape=2)}, bytes(8)), "'a' has a shape"),
    ("shape of true", raw({"a": entry("U8", (True,), (0, 1))}, bytes(1)), "'a' has a shape"),
    ("shape of floats", raw({"a": entry(shape=(2.0,))}, bytes(8)), "'a' has a shape"),
    ("shape below zero", raw({"a": entry(shape=(-2,))}, bytes(8)), "'a' has a shape"),
    ("shape overflows", raw({"a": entry(shape=(2**63, 2))}, bytes(8)), "'a' has a shape"),
    ("product overflows", raw({"a": entry(shape=(2**62, 2**62))}, bytes(8)), "needs"),
    ("too many axes", raw({"a": entry(shape=[1] * 1000 + [2])}, bytes(8)), "'a' has a shape"),
    ("one offset", raw({"a": entry(offsets=(8,))}, bytes(8)), "'a' has data_offsets"),
    ("offsets reversed", raw({"a": entry(offsets=(8, 0))}, bytes(8)), "'a' has data_offsets"),
    ("offset below zero", raw({"a": entry(offsets=(-8, 0))}, bytes(8)), "'a' has data_offsets"),
    ("offset of true", raw({"a": entry("U8", (1,), (0, True))}, bytes(1)), "'a' has data_offsets"),
    ("shape not matching bytes", raw({"a": entry(shape=(3,))}, bytes(8)), "needs 12 bytes, its offsets give 8"),
    ("out of range", raw({"a": entry(offsets=(1000, 1008))}, bytes(8)), "truncated: its header promises"),
    ("truncated data", raw({"a": entry()}, bytes(7)), "truncated: its header promises"),
    ("overlap", raw({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "tensor 'b' overlaps"),
    ("the same bytes twice", raw({"a": entry(), "b": entry()}, bytes(8)), "tensor 'b' overlaps"),
    ("hole", raw({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "4 bytes before tensor 'b'"),
    ("hole at the start", raw({"a": entry(offsets=(4, 12))}, bytes(12)), "4 bytes before tensor 'a'"),
    ("bytes after the end", raw({"a": entry()}, bytes(11)), "3 bytes longer"),
    ("LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-LFS pointer"),
    ("web page", b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    ("zip", b"PK\3\4" + bytes(60), "truncated: its header has 67324752 bytes"),
]


@pytest.mark.parametrize(("data", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_broken_file_is_named_with_a_remedy(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "model-00001-of-00002.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        read_safetensors(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_100_mb_header_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000) + b"{")
        file.truncate(300_000_000)
    began = time.perf_counter()
    with pytest.raises(WeightsError, match="200000000"):
        read_safetensors(path)
    assert time.perf_counter() - began < 0.5


def test_the_library_refuses_what_we_refuse_and_we_name_more(tmp_path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    accepted = []
    for name, data, _ in BROKEN:
        path = tmp_path / "x"
        path.write_bytes(data)
        try:
            with safe_open(path, "np"):
                accepted.append(name)
        except (SafetensorError, OSError):
            pass
    # We are stricter only where the format's text is, or where a tensor could not be converted or would be lost.
    assert {*accepted} <= {
        "header after a space",
        "name with an escape sequence",
        "duplicate tensor",
        "entry has one more",
        "dtype below a byte",
        "dtype of six bits",
        "too many axes",
    }
