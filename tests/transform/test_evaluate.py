"""Blocks of rows: each row once, bounded reads, and what they are said to need."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored import assert_rows, real, store_random

from mlxport.transform import Evaluator, evaluate, lazy_arrays, row_blocks, trace, working_bytes
from mlxport.types import QuantSpec

AFFINE = QuantSpec("affine", 4, 32)
NVFP4 = QuantSpec("nvfp4", 4, 16)

MAPS = {
    "copy": lambda a: a,
    "cast": lambda a: a.astype(mx.float32),
    "transposed": lambda a: a.T,
    "reshaped": lambda a: a.reshape(-1),
    "one row": lambda a: a.reshape(1, -1),
    "stacked": lambda a: mx.stack([a, a]),
    "scalar": lambda a: a[0, 0],
    "nothing": lambda a: a[:0],
    "no columns": lambda a: a[:, :0],
}


@pytest.mark.parametrize("quant", [None, AFFINE, NVFP4])
@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 12, 1 << 30])
@pytest.mark.parametrize("name", [name for name in MAPS if name != "scalar"])
def test_blocks_cover_every_row_once(name: str, block_bytes: int, quant: QuantSpec | None, tmp_path: Path, monkeypatch):
    value = trace(lambda t: {"o": MAPS[name](t["a"])}, store_random(tmp_path, a=("BF16", (37, 64)))).outputs["o"].value
    for whole in (16, 1 << 30):
        monkeypatch.setattr(evaluate, "WHOLE_BYTES", whole)
        blocks = list(row_blocks(value, quant, block_bytes))
        assert [blocks[0][0], blocks[-1][1]] == [0, value.shape[0]]
        assert all(stop == start for (_, stop), (start, _) in zip(blocks, blocks[1:], strict=False))
        assert all(start < stop for start, stop in blocks) or not value.shape[0]


def test_a_scalar_is_one_block(tmp_path: Path):
    value = trace(dict, store_random(tmp_path, a=("F32", ()))).outputs["a"].value
    assert list(row_blocks(value)) == [(0, 1)]
    assert working_bytes(value) > 0


@given(rows=st.integers(0, 3000), columns=st.integers(0, 300), block=st.integers(1, 5000))
def test_a_block_is_not_larger_than_asked(rows: int, columns: int, block: int):
    from mlxport.transform import Value

    value = Value((rows, columns), mx.bfloat16)
    blocks = list(row_blocks(value, block_bytes=block))
    assert sum(stop - start for start, stop in blocks) == rows
    assert all((stop - start) * columns * 2 <= max(block, columns * 2) for start, stop in blocks)


@pytest.mark.parametrize("name", ["transposed", "of a cast", "three axes", "stacked"])
def test_a_large_transposed_tensor_is_read_in_column_ranges(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(evaluate, "WHOLE_BYTES", 256)
    monkeypatch.setattr(evaluate, "BLOCK_BYTES", 128)
    pipeline = {
        "transposed": lambda t: {"o": t["a"].T},
        "of a cast": lambda t: {"o": (t["a"] + 1).astype(mx.float16).T},
        "three axes": lambda t: {"o": t["b"].transpose(2, 0, 1)},
        "stacked": lambda t: {"o": mx.stack([t["a"].T, t["a"].T + 1])},
    }[name]
    refs = store_random(tmp_path, a=("F32", (31, 17)), b=("BF16", (5, 7, 9)))
    value = trace(pipeline, refs).outputs["o"].value
    assert_rows(value, pipeline(real(refs))["o"])
    if name != "stacked":
        assert len(list(row_blocks(value, block_bytes=128))) > 1
    read: list[int] = []
    rows = Evaluator(on_leaf=lambda ref, start, data: read.append(data.nbytes)).rows(value, 0, 1)
    mx.eval(rows)
    assert max(read) <= 128 + 31 * 4  # never the whole tensor at once


def test_a_small_transposed_tensor_is_read_once(tmp_path: Path):
    value = trace(lambda t: {"o": t["a"].T}, store_random(tmp_path, a=("F32", (31, 17)))).outputs["o"].value
    assert list(row_blocks(value, block_bytes=64)) == [(0, 17)]


def test_equal_requests_are_read_once(tmp_path: Path):
    refs = store_random(tmp_path, a=("F32", (6, 4)))
    value = trace(lambda t: {"o": t["a"] * 2 + t["a"]}, refs).outputs["o"].value
    read: list[str] = []
    Evaluator(on_leaf=lambda ref, start, data: read.append(ref.name)).rows(value, 2, 4)
    assert read == ["a"]


def test_rows_ask_only_for_what_they_need(tmp_path: Path):
    refs = store_random(tmp_path, a=("F32", (6, 4)), b=("F32", (6, 4)))
    value = trace(lambda t: {"o": mx.stack([t["a"], t["b"]])[:, 1:].reshape(10, 4)}, refs).outputs["o"].value
    read: list[tuple[str, int]] = []
    Evaluator(on_leaf=lambda ref, start, data: read.append((ref.name, data.nbytes))).rows(value, 6, 8)
    assert {name for name, _ in read} == {"b"}


def test_arrays_stand_in_for_the_file(tmp_path: Path):
    refs = store_random(tmp_path, a=("F32", (6, 4)))
    value = trace(lambda t: {"o": t["a"].T + 1}, refs).outputs["o"].value
    refs["a"].path.unlink()
    assert mx.array_equal(Evaluator({"a": mx.ones((6, 4))}).full(value), mx.full((4, 6), 2.0))


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("name", MAPS)
def test_working_bytes_hold_a_block_and_its_source(name: str, dtype: str, tmp_path: Path):
    refs = store_random(tmp_path, a=(dtype, (37, 64)))
    value = trace(lambda t: {"o": MAPS[name](t["a"])}, refs).outputs["o"].value
    if value is None:
        assert name == "scalar"
        return
    needed = working_bytes(value)
    block = value.dtype.size * 37 * 64 if name not in ("nothing", "no columns") else 0
    assert block <= needed <= 6 * 37 * 64 * 4


def test_working_bytes_stay_bounded_for_a_large_tensor():
    from mlxport.transform import Value

    for quant in (None, AFFINE, NVFP4):
        assert working_bytes(Value((200_000, 8192), mx.bfloat16), quant) <= 2 * evaluate.BLOCK_BYTES


def test_lazy_arrays_are_those_of_the_file(tmp_path: Path):
    refs = store_random(tmp_path, a=("BF16", (3, 4)), b=("F64", (2,)), c=("F8_E4M3", (5,)))
    arrays = lazy_arrays(refs)
    for name, want in real(refs).items():
        assert arrays[name].dtype == want.dtype
        assert mx.array_equal(arrays[name], want)
