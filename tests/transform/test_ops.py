"""Every primitive: rows of the traced graph, read from a file, are those of MLX's own run, bit for bit."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from stored import assert_traced, ops_of, store_random

from mlxport.transform import trace
from mlxport.transform.row_rules import ROW_OPS, RowOp, register

F = {"a": ("F32", (6, 8)), "b": ("F32", (6, 8))}
WIDE = {"a": ("BF16", (4, 6, 10)), "b": ("BF16", (4, 6, 10))}
INTS = {"a": ("U32", (5, 4)), "b": ("U32", (5, 4))}


def one(function):
    """A pipeline of one output."""
    return lambda arrays: {"out": function(*arrays.values())}


# name -> (inputs, pipeline, the primitives that it is there for)
PIPELINES = {
    "arithmetic": (F, one(lambda a, b: (a + b) * a - b / (1 + mx.square(b))), "Add Multiply Subtract Divide Square"),
    "arithmetic bf16": (WIDE, one(lambda a, b: a * b + 1), "Multiply Add"),
    "bounds": (F, one(lambda a, b: mx.maximum(a, 0) + mx.minimum(b, 0.5)), "Maximum Minimum"),
    "unary": (F, one(lambda a, b: mx.tanh(-a) + mx.sigmoid(b) + mx.abs(a)), "Tanh Negative Sigmoid Abs"),
    "power": (F, one(lambda a, b: mx.power(mx.abs(a), b)), "Power"),
    "exponent": (F, one(lambda a, b: mx.exp(a) + mx.log(mx.abs(a)) + mx.log2(mx.abs(b)) + mx.log10(mx.exp(b))),
                 "Exp Log"),
    "roots": (F, one(lambda a, b: mx.sqrt(mx.abs(a)) + mx.rsqrt(mx.abs(b))), "Sqrt"),
    "choice": (F, one(lambda a, b: mx.where(a > b, a, mx.where(a < 0, b, 1))), "Select Greater Less"),
    "comparisons": (F, one(lambda a, b: mx.where(a >= b, a, mx.where(b <= 0, b, a))), "GreaterEqual LessEqual"),
    "constant": (F, one(lambda a, b: mx.full((6, 8), -8.0) * a + mx.ones((6, 8))), "Full Broadcast"),
    "bits": (INTS, one(lambda a, b: ((a >> 3) & 15) | ((b ^ a) << 2)), "BitwiseBinary"),
    "unpack": (INTS, one(lambda a, b: ((a[..., None] >> mx.array([0, 4, 1, 5]) * 4) & 15).reshape(5, -1).T),
               "BitwiseBinary"),
    "pack": (INTS, one(lambda a, b: ((a.reshape(5, 2, 2) & 15) << (mx.arange(2) * 4)).sum(axis=-1)), "Reduce Arange"),
    "cast": (F, one(lambda a, b: a.astype(mx.bfloat16).astype(mx.float16)), "AsType"),
    "cast to ints": (F, one(lambda a, b: (a * 100).astype(mx.int8)), "AsType"),
    "broadcast rows": (F, one(lambda a, b: mx.broadcast_to(a[:1], (6, 8)) + b), "Broadcast"),
    "broadcast new axis": (F, one(lambda a, b: mx.broadcast_to(a, (3, 6, 8))), "Broadcast"),
    "broadcast columns": (F, one(lambda a, b: mx.broadcast_to(a[:, :1], (6, 8)) * b), "Broadcast"),
    "repeat": (F, one(lambda a, b: mx.repeat(a, 3, axis=0)), "Broadcast"),
    "tile": (F, one(lambda a, b: mx.tile(a, (2, 3))), "Broadcast"),
    "reshape": (WIDE, one(lambda a, b: a.reshape(10, 24)), "Reshape"),
    "reshape finer": (WIDE, one(lambda a, b: a.reshape(80, 3)), "Reshape"),
    "reshape coarser": (WIDE, one(lambda a, b: a.reshape(3, 80)), "Reshape"),
    "flatten": (WIDE, one(lambda a, b: mx.flatten(a, 0, 1)), "Flatten"),
    "flatten tail": (WIDE, one(lambda a, b: a.flatten(-2)), "Flatten"),
    "unflatten": (WIDE, one(lambda a, b: mx.unflatten(a, 0, (2, 2))), "Unflatten"),
    "axes": (WIDE, one(lambda a, b: a[:, None, :1].squeeze(2)), "ExpandDims Squeeze"),
    "leading axis": (WIDE, one(lambda a, b: mx.expand_dims(a, 0)), "ExpandDims"),
    "drop leading axis": (WIDE, one(lambda a, b: a[1:2].squeeze(0)), "Squeeze"),
    "transpose": (F, one(lambda a, b: a.T), "Transpose"),
    "swap tail": (WIDE, one(lambda a, b: a.swapaxes(-1, -2)), "Transpose"),
    "move axis": (WIDE, one(lambda a, b: mx.moveaxis(a, 2, 0)), "Transpose"),
    "three axes": (WIDE, one(lambda a, b: a.transpose(1, 2, 0)), "Transpose"),
    "transpose a result": (F, one(lambda a, b: (a + b).astype(mx.float16).T), "Transpose"),
    "slice": (F, one(lambda a, b: a[1:5]), "Slice"),
    "slice columns": (F, one(lambda a, b: a[:, 2:7]), "Slice"),
    "slice steps": (F, one(lambda a, b: a[1::2, ::3]), "Slice"),
    "slice last rows": (F, one(lambda a, b: a[-2:]), "Slice"),
    "slice nothing": (F, one(lambda a, b: mx.concatenate([a[2:2], b, b[:, :0].reshape(0, 8)])), "Slice"),
    "slice no rows": (F, one(lambda a, b: a[5:1:2]), ""),
    "split rows": (F, lambda t: dict(zip("qkv", mx.split(t["a"], [1, 3]), strict=True)), "Split"),
    "split columns": (F, lambda t: dict(zip("gu", mx.split(t["a"], 2, axis=-1), strict=True)), "Split"),
    "split middle": (WIDE, lambda t: dict(zip("xyz", mx.split(t["a"], [2, 5], axis=1), strict=True)), "Split"),
    "concatenate": (F, one(lambda a, b: mx.concatenate([a, b[:1], a[3:]])), "Concatenate"),
    "concatenate columns": (F, one(lambda a, b: mx.concatenate([a, b], axis=1)), "Concatenate"),
    "stack": (WIDE, one(lambda a, b: mx.stack([a, b])), "Concatenate ExpandDims"),
    "stack tail": (WIDE, one(lambda a, b: mx.stack([a, b], axis=-1)), "Concatenate"),
    "roll": (F, one(lambda a, b: mx.roll(a, 2, 0)), "Split Concatenate"),
    "pad": (F, one(lambda a, b: mx.pad(a, ((2, 3), (1, 0)), constant_values=3)), "Pad"),
    "pad columns": (F, one(lambda a, b: mx.pad(a, ((0, 0), (0, 5)))), "Pad"),
    "pad middle": (WIDE, one(lambda a, b: mx.pad(a, ((0, 0), (1, 2), (0, 0)))), "Pad"),
    "pad nothing": ({"a": ("F32", (0, 3))}, one(lambda a: mx.pad(a, ((2, 1), (0, 1)), constant_values=2)), "Pad"),
    "take rows": (F, one(lambda a, b: a[mx.array([4, 0, 0, -1, 2])]), "Gather"),
    "take a table of rows": (F, one(lambda a, b: mx.take(a, mx.array([[1, 0], [5, 2], [3, 3]]), axis=0)), "Gather"),
    "take a row": (WIDE, one(lambda a, b: a[1]), "Gather"),
    "look up": ({"a": ("U8", (5, 7))}, one(lambda a: mx.take(mx.array([float(i) for i in range(256)]), a)),
                "Gather"),
    "reduce": (WIDE, one(lambda a, b: a.sum(-1) + b.max(-1) + a.min(-1)), "Reduce"),
    "reduce middle": (WIDE, one(lambda a, b: a.prod(1, keepdims=True) + b.max(1, keepdims=True)), "Reduce"),
    "reinterpret": (WIDE, one(lambda a, b: a.view(mx.uint32)), "View"),
    "reinterpret wider": ({"a": ("U8", (3, 4, 2, 16))}, one(lambda a: a.view(mx.uint32).flatten(-2)), "View"),
    "reinterpret narrower": (INTS, one(lambda a, b: a.view(mx.uint8)), "View"),
    "range": (F, one(lambda a, b: a + mx.arange(8) + mx.arange(6)[:, None]), "Arange"),
    "range alone": (F, one(lambda a, b: mx.arange(1, 5, 0.5)), "Arange"),
}  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
def test_rows_are_those_of_a_plain_run(name: str, tmp_path: Path):
    inputs, pipeline, expected = PIPELINES[name]
    program = assert_traced(store_random(tmp_path, **inputs), pipeline)
    assert set(expected.split()) <= ops_of(program)


def test_the_table_has_every_primitive():
    ours = {"Dequantize"}  # of maps read backwards, which no pipeline has: tests/layouts/test_hugging_face.py
    assert {op for _, _, expected in PIPELINES.values() for op in expected.split()} == set(ROW_OPS) - ours


REFUSED = {
    "sort": lambda a: mx.sort(a, axis=0),
    "scan": lambda a: mx.cumsum(a, axis=1),
    "product": lambda a: a @ a.T,
    "backwards": lambda a: a[::-1],
    "update": lambda a: a.at[0].add(1),
    "reduce rows": lambda a: a.sum(0),
    "reduce all": lambda a: a.max(),
    "truth of rows": lambda a: mx.all(a > 0, axis=1),
    "columns by index": lambda a: mx.take(a, mx.array([2, 0]), axis=1),
    "elements by index": lambda a: a[mx.array([0, 1]), mx.array([1, 1])],
    "index that is stored": lambda a: mx.take(a, (a[:, 0] > 0).astype(mx.int32), axis=0),
    "table that is computed": lambda a: mx.take(mx.arange(4) * 2.0, (a > 0).astype(mx.uint32)),
    "one axis reinterpreted": lambda a: a.reshape(-1).view(mx.uint16),
    "a scalar": lambda a: a[0, 0],
    "flat": lambda a: mx.as_strided(a, (2, 3), (1, 2)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_rows_cannot_honour_is_left_to_the_pipeline(name: str, tmp_path: Path):
    refs = store_random(tmp_path, a=("F32", (6, 8)))
    program = trace(lambda t: {"plain": t["a"] + 1, "out": REFUSED[name](t["a"])}, refs)
    assert program.outputs["out"].value is None
    assert program.outputs["plain"].value is not None


def test_a_primitive_is_registered_once():
    with pytest.raises(ValueError, match="Add is registered twice"):
        register("Add", RowOp(lambda *_: mx.array(0)))
