"""Real safetensors files of tiny arrays, and comparison bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlxport.transform import Evaluator, Program, Value, row_blocks, to_bytes, trace
from mlxport.types import DTYPE_BITS, TensorRef

NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BOOL": np.bool_, "C64": np.complex64}
NUMPY |= {f"{kind}{bits}": np.dtype(f"{name}{bits}").type for kind, name in (("I", "int"), ("U", "uint"))
          for bits in (8, 16, 32, 64)}  # fmt: skip


def random_bytes(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Values of a safetensors dtype as bytes; floats are finite and of both signs."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape)
    if dtype in ("F64", "F32", "F16"):
        data = values.astype(NUMPY[dtype])
    elif dtype == "BF16":
        data = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    elif dtype == "C64":
        data = (values + 1j * random.standard_normal(shape)).astype(np.complex64)
    elif dtype == "BOOL":
        data = values > 0
    elif dtype in NUMPY:
        info = np.iinfo(NUMPY[dtype])
        data = random.integers(info.min, info.max, shape, NUMPY[dtype], endpoint=True)
    else:
        data = random.integers(0, 256, shape, np.uint8, endpoint=False)
    return np.ascontiguousarray(data)


def store(path: Path, tensors: Mapping[str, tuple[str, np.ndarray]]) -> dict[str, TensorRef]:
    """Write a safetensors file, without the package's own code; name -> (dtype, elements)."""
    header, offset = {}, 0
    for name, (dtype, data) in tensors.items():
        assert data.nbytes == prod(data.shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(data.shape), "data_offsets": [offset, offset + data.nbytes]}
        offset += data.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(d.tobytes() for _, d in tensors.values()))
    return {
        name: TensorRef(name, entry["dtype"], tuple(entry["shape"]), path, 8 + len(text) + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def store_random(folder: Path, **tensors: tuple[str, tuple[int, ...]]) -> dict[str, TensorRef]:
    """A file of random tensors; name=(dtype, shape)."""
    made = {
        name: (dtype, random_bytes(dtype, shape, seed)) for seed, (name, (dtype, shape)) in enumerate(tensors.items())
    }
    return store(folder / "model.safetensors", made)


def real(refs: Mapping[str, TensorRef]) -> dict[str, mx.array]:
    """The arrays in memory, as ``mx.load`` gives them (float64, which it refuses, as float32)."""
    arrays = {}
    for name, ref in refs.items():
        with open(ref.path, "rb") as file:
            file.seek(ref.offset)
            data = file.read(ref.nbytes)
        if ref.dtype == "F64":
            arrays[name] = mx.array(np.frombuffer(data, np.float64).astype(np.float32).reshape(ref.shape))
        else:
            arrays[name] = mx.load(str(without_f64(ref)))[name]
    return arrays


def without_f64(ref: TensorRef) -> Path:
    """A file with this tensor alone, so that ``mx.load`` meets no dtype that it refuses."""
    path = ref.path.with_name(f"{ref.name}.alone.safetensors")
    with open(ref.path, "rb") as file:
        file.seek(ref.offset)
        data = np.frombuffer(file.read(ref.nbytes), np.uint8)
    header = {ref.name: {"dtype": ref.dtype, "shape": list(ref.shape), "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data.tobytes())
    return path


def assert_same(got: mx.array, want: mx.array, what: object = "") -> None:
    """Equal dtype, shape and bits."""
    assert got.dtype == want.dtype, what
    assert tuple(got.shape) == tuple(want.shape), what
    assert to_bytes(got).tobytes() == to_bytes(want).tobytes(), what


def ranges(rows: int) -> list[tuple[int, int]]:
    """Ranges of rows worth trying: all, none, single ones, and cuts in odd places."""
    cuts = sorted({0, 1, rows // 3, rows // 2, rows - 1, rows} & set(range(rows + 1)))
    return [(a, b) for a in cuts for b in cuts if a <= b]


def assert_rows(value: Value, want: mx.array, what: object = "") -> None:
    """Every range of rows, and those of ``row_blocks`` put together, are those of ``want``."""
    assert value.dtype == want.dtype and value.shape == tuple(want.shape), what
    if not value.shape:
        assert_same(Evaluator().full(value), want, what)
        return
    for start, stop in ranges(value.shape[0]):
        assert_same(Evaluator().rows(value, start, stop), want[start:stop], (what, start, stop))
    one = Evaluator()
    blocks = [one.rows(value, start, stop) for start, stop in row_blocks(value, block_bytes=64)]
    assert_same(mx.concatenate(blocks), want, what)


def assert_traced(refs: Mapping[str, TensorRef], pipeline) -> Program:
    """``pipeline`` is followed wholly, and its rows are those of a plain run on the arrays in memory."""
    program = trace(pipeline, refs)
    want = pipeline(real(refs))
    assert list(program.outputs) == list(want)
    for name, output in program.outputs.items():
        assert (output.shape, output.dtype) == (tuple(want[name].shape), want[name].dtype)
        assert output.value is not None, f"{name} was not followed"
        assert_rows(output.value, want[name], name)
    return program


def ops_of(program: Program) -> set[str]:
    """Names of the primitives in a program."""
    values = [output.value for output in program.outputs.values() if output.value is not None]
    return {node.call.op for value in values for node in value.cone() if node.call is not None}
