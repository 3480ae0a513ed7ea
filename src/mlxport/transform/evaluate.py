"""Compute rows of a value from just the bytes that they need."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlxport.quant import MODES
from mlxport.quant.packing import searches
from mlxport.quant.search import search_bytes
from mlxport.source import read_rows
from mlxport.transform.dtypes import mx_dtype, to_mx
from mlxport.transform.program import Value
from mlxport.transform.row_rules import ROW_OPS
from mlxport.types import QuantSpec, TensorRef

# Bytes of rows that one evaluation works on: large enough to keep a core busy, small enough to bound memory.
BLOCK_BYTES = 8 << 20
# A strided read (a transposed tensor) takes the whole tensor at once up to here, column ranges beyond.
WHOLE_BYTES = 128 << 20


_local = threading.local()


def _scratch() -> np.ndarray:
    """This thread's buffer for what is read: the pages of a fresh one cost as much as filling it."""
    if not hasattr(_local, "scratch"):
        _local.scratch = np.empty(BLOCK_BYTES, np.uint8)
    scratch: np.ndarray = _local.scratch
    return scratch


class Evaluator:
    """Rows of values, read from disk as they are asked for; equal requests are computed once.

    Args:
        arrays: Arrays to use instead of reading, by checkpoint name.
        on_leaf: Called with each tensor reference, the first row read and the raw bytes.
        widen: Leave floating casts undone (float32 throughout), for inverting.
    """

    def __init__(
        self,
        arrays: Mapping[str, mx.array] | None = None,
        on_leaf: Callable[[TensorRef, int, np.ndarray], None] | None = None,
        widen: bool = False,
    ) -> None:
        self._arrays = arrays or {}
        self._on_leaf = on_leaf
        self._widen = widen
        self._memo: dict[tuple[int, int, int], mx.array] = {}

    @staticmethod
    def read(ref: TensorRef, start: int, stop: int) -> np.ndarray:
        """The raw bytes of rows [start, stop) of a checkpoint tensor."""
        return read_rows(ref, start, stop)

    @staticmethod
    def whole(ref: TensorRef) -> mx.array:
        """A checkpoint tensor, read now."""
        return to_mx(read_rows(ref), ref, ref.shape)

    def rows(self, value: Value, start: int, stop: int) -> mx.array:
        """Rows [start, stop) of ``value`` along axis 0 (the value itself where it has no axis)."""
        if value.shape and start == stop:
            return mx.zeros((0, *value.shape[1:]), value.dtype)
        key = (id(value), start, stop)
        if key not in self._memo:
            self._memo[key] = self._compute(value, start, stop)
        return self._memo[key]

    def full(self, value: Value) -> mx.array:
        """The whole of ``value``."""
        return self.rows(value, 0, value.shape[0] if value.shape else 1)

    def columns(self, value: Value, axis: int, start: int, stop: int) -> mx.array:
        """The range [start, stop) of ``value`` along ``axis``."""
        cut = [slice(None)] * len(value.shape)
        cut[axis] = slice(start, stop)
        nbytes = prod(value.shape) * value.dtype.size
        if self._arrays or nbytes <= WHOLE_BYTES:
            return self.full(value)[tuple(cut)]
        step = max(1, BLOCK_BYTES * value.shape[0] // nbytes)
        pieces = []
        for row in range(0, value.shape[0], step):
            block = Evaluator(on_leaf=self._on_leaf).rows(value, row, min(row + step, value.shape[0]))
            # A slice would share, and so keep, the memory of the whole block.
            pieces.append(mx.contiguous(block[tuple(cut)]))
            mx.eval(pieces[-1])
        return mx.concatenate(pieces, axis=0)

    def cast(self, array: mx.array, dtype: mx.Dtype) -> mx.array:
        """``array`` as ``dtype``; left alone between floating dtypes when inverting."""
        if self._widen and mx.issubdtype(dtype, mx.floating) and mx.issubdtype(array.dtype, mx.floating):
            return array
        return array.astype(dtype)

    def _compute(self, value: Value, start: int, stop: int) -> mx.array:
        if value.constant is not None:
            return value.constant[start:stop] if value.shape else value.constant
        if value.leaf is not None:
            return self._leaf(value.leaf, start, stop)
        assert value.call is not None
        return ROW_OPS[value.call.op].rows(self, value, start, stop)

    def _leaf(self, ref: TensorRef, start: int, stop: int) -> mx.array:
        if ref.name in self._arrays:
            array = self._arrays[ref.name]
            return array[start:stop] if ref.shape else array
        data = read_rows(ref, start, stop, _scratch())  # MLX copies it before anything else is read
        if self._on_leaf is not None:
            self._on_leaf(ref, start, data)
        return to_mx(data, ref, (stop - start, *ref.shape[1:]) if ref.shape else ())


def lazy_arrays(refs: Mapping[str, TensorRef]) -> dict[str, mx.array]:
    """Every checkpoint tensor as a lazily loaded array; those of files that MLX cannot load are read."""
    loaded = {path: _lazy_file(path) for path in {ref.path for ref in refs.values()}}
    arrays = {}
    for name, ref in refs.items():
        mx_dtype(ref)
        file = loaded[ref.path]
        arrays[name] = file[ref.name_in_file] if file is not None else Evaluator.whole(ref)
    return arrays


def _lazy_file(path: Path) -> dict[str, mx.array] | None:
    """``mx.load``; None for torch files, and for safetensors files that hold a dtype unknown to MLX (float64)."""
    if path.suffix != ".safetensors":
        return None
    try:
        return mx.load(str(path))  # type: ignore[return-value]
    except RuntimeError as error:
        if "unsupported dtype" not in str(error):
            raise
        return None


def row_blocks(
    value: Value, quant: QuantSpec | None = None, block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[int, int]]:
    """Ranges of rows of ``value`` such that one range works on about ``block_bytes``; at least one row each.

    A value that needs a strided read of its source is not split while that source is small, since every block would
    read all of it again.
    """
    rows = value.shape[0] if value.shape else 1
    row_bytes = max(1, prod(value.shape[1:]) * max(value.dtype.size, 2))
    if quant is not None:
        row_bytes *= MODES[quant.mode].packing_work
    step = max(1, block_bytes // row_bytes)
    strided = _strided_bytes(value)
    if strided:
        step = rows if strided <= WHOLE_BYTES else max(step, rows * WHOLE_BYTES // (2 * strided))
    if not rows:
        yield 0, 0
    if rows:  # blocks of one size leave no odd gaps in the heap
        step = -(-rows // -(-rows // step))
    for start in range(0, rows, max(step, 1)):
        yield start, min(start + step, rows)


def _strided_bytes(value: Value) -> int:
    """Bytes of the largest source that is read across its rows."""
    return max(
        (
            prod(node.call.inputs[0].shape) * node.call.inputs[0].dtype.size
            for node in value.cone()
            if node.call is not None and node.call.op == "Transpose" and node.call.args[0][0] != 0
        ),
        default=0,
    )


def working_bytes(value: Value, quant: QuantSpec | None = None, quantizer: str = "rtn") -> int:
    """Bytes that the largest block of ``value`` works on: rows, what they are computed from, a search's temporaries."""
    rows = value.shape[0] if value.shape else 1
    start, stop = next(row_blocks(value, quant))
    block = (stop - start) * prod(value.shape[1:]) * max(value.dtype.size, 2)
    share = sum(ref.nbytes for ref in value.leaves()) * (stop - start) // max(rows, 1)
    searched = 0
    if searches(quantizer, quant):
        searched = search_bytes((stop - start) * prod(value.shape[1:]))
    return max(block + share, _strided_bytes(value) and min(_strided_bytes(value), WHOLE_BYTES) + block) + searched
