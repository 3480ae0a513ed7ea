"""Blocks of a shard: rows of tensors, read or computed by worker threads, and what was found in them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.quant.packing import PARTS, quantize_rows
from mlxport.source import read_rows
from mlxport.transform import (
    BLOCK_BYTES,
    Evaluator,
    Output,
    Program,
    Value,
    lazy_outputs,
    row_blocks,
    st_dtype,
    to_bytes,
)
from mlxport.types import OutTensor, Shard, TensorRef

__all__ = ["Block", "Buffers", "Findings", "block_tasks", "count_nonfinite"]

# The bits that are all ones in a NaN or an infinity, by safetensors dtype.
_EXPONENT: Mapping[str, tuple[Any, int]] = {
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F32": (np.uint32, 0x7F800000),
    "F64": (np.uint64, 0x7FF0000000000000),
}
_SCAN_ELEMENTS = 1 << 17


@dataclass
class Findings:
    """Values that are not finite, by tensor name.

    Attributes:
        nonfinite: Source tensor to the number of its NaN and infinite values.
        overflowed: Output tensor to the number of values that were finite before the cast and are not after it.
    """

    nonfinite: dict[str, int] = field(default_factory=dict)
    overflowed: dict[str, int] = field(default_factory=dict)

    def merge(self, other: Findings) -> None:
        """Add the counts of ``other``."""
        for mine, theirs in ((self.nonfinite, other.nonfinite), (self.overflowed, other.overflowed)):
            for name, count in theirs.items():
                _add(mine, name, count)


def _add(counts: dict[str, int], name: str, count: int) -> None:
    """Add to what was counted under ``name``; nothing leaves no entry."""
    if count:
        counts[name] = counts.get(name, 0) + count


@dataclass(frozen=True)
class Block:
    """Computed rows: the bytes of each part of a group, and where they start within their tensors."""

    parts: tuple[tuple[str, int, np.ndarray[Any, Any]], ...]
    findings: Findings
    buffer: np.ndarray[Any, Any] | None = None  # of the pool, to be given back once the block is written and hashed


class Buffers:
    """Buffers of one block each that are used again: the pages of a fresh one cost as much as filling it."""

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[np.ndarray[Any, Any]] = queue.SimpleQueue()

    def take(self) -> np.ndarray[Any, Any]:
        """A buffer of ``BLOCK_BYTES``; its content is undefined."""
        try:
            return self._free.get_nowait()
        except queue.Empty:
            return np.empty(BLOCK_BYTES, np.uint8)

    def give_back(self, buffer: np.ndarray[Any, Any] | None) -> None:
        """Let ``buffer`` be used again."""
        if buffer is not None:
            self._free.put(buffer)


def count_nonfinite(data: np.ndarray[Any, Any], dtype: str) -> int:
    """Number of NaN and infinite values among the raw bytes of a floating tensor (0 for other dtypes)."""
    if dtype not in _EXPONENT:
        return 0
    kind, mask = _EXPONENT[dtype]
    words = data.view(kind)
    scratch = np.empty(min(_SCAN_ELEMENTS, words.size), kind)
    total = 0
    for start in range(0, words.size, _SCAN_ELEMENTS):
        piece = words[start : start + _SCAN_ELEMENTS]
        masked = np.bitwise_and(piece, kind(mask), out=scratch[: piece.size])
        if masked.max(initial=0) == mask:  # cheaper than counting, and nearly never so
            total += int(np.count_nonzero(masked == kind(mask)))
    return total


def block_tasks(program: Program, shard: Shard, buffers: Buffers) -> Iterator[Callable[[], Block]]:
    """One task for each block of rows of each group of tensors that are computed together."""
    groups: dict[str, list[OutTensor]] = {}
    for tensor in shard.tensors:
        # Parts that were computed beforehand are tensors of their own.
        together = program.outputs[tensor.name].part or not tensor.part
        groups.setdefault(tensor.source if together else tensor.name, []).append(tensor)
    lazy: dict[str, mx.array] | None = None
    counted = _Counted()
    for tensors in groups.values():
        outputs = [program.outputs[tensor.name] for tensor in tensors]
        value = outputs[0].value
        if value is None:
            if lazy is None:
                lazy = lazy_outputs(program)
            yield _opaque_task(tensors, lazy)
            continue
        starts = dict.fromkeys((tensor.name for tensor in tensors), 0)
        for start, stop in row_blocks(value, outputs[0].quant):
            offsets = dict(starts)
            rows = stop - start
            for tensor in tensors:
                starts[tensor.name] += tensor.nbytes * rows // max(value.shape[0] if value.shape else 1, 1)
            if value.leaf is not None and outputs[0].quant is None and value.leaf.dtype != "F64":
                yield _copy_task(outputs[0].name, value.leaf, start, stop, offsets, buffers, counted)
            else:
                yield _row_task(outputs, value, (start, stop), offsets, counted, program.quantizer)


class _Counted:
    """The rows of source tensors in which NaN and infinities were counted: tensors may be read several times."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, set[tuple[int, int]]] = {}

    def note(self, ref: TensorRef, start: int, data: np.ndarray[Any, Any], findings: Findings) -> None:
        """Count what is not finite in ``data``, the rows of ``ref`` from ``start`` on, where it was not counted yet."""
        if not count_nonfinite(data, ref.dtype):
            return
        length = max(1, ref.shape[0] if ref.shape else 1)
        row_bytes = ref.nbytes // length
        with self._lock:
            done = self._rows.setdefault(ref.name, set())
            total = 0
            for first, last in _uncovered((start, start + data.nbytes // row_bytes), done):
                done.add((first, last))
                piece = data[(first - start) * row_bytes : (last - start) * row_bytes]
                total += count_nonfinite(piece, ref.dtype)
            _add(findings.nonfinite, ref.name, total)


def _uncovered(wanted: tuple[int, int], done: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of the range ``wanted`` that no range of ``done`` covers."""
    start, stop = wanted
    parts = []
    for first, last in sorted(done):
        if first >= stop:
            break
        if first > start:
            parts.append((start, first))
        start = max(start, last)
    return [*parts, (start, stop)] if start < stop else parts


_local = threading.local()


def _stream() -> mx.Stream:
    """This thread's own stream on the default device."""
    if not hasattr(_local, "stream"):
        _local.stream = mx.new_stream(mx.default_device())
    stream: mx.Stream = _local.stream
    return stream


def _copy_task(
    name: str,
    leaf: TensorRef,
    start: int,
    stop: int,
    offsets: Mapping[str, int],
    buffers: Buffers,
    counted: _Counted,
) -> Callable[[], Block]:
    """Rows that reach the output as they are: no MLX in between."""

    def task() -> Block:
        buffer = buffers.take()
        data = read_rows(leaf, start, stop, buffer)
        findings = Findings()
        counted.note(leaf, start, data, findings)
        return Block(((name, offsets[name], data),), findings, buffer)

    return task


def _row_task(
    outputs: list[Output],
    value: Value,
    span: tuple[int, int],
    offsets: Mapping[str, int],
    counted: _Counted,
    quantizer: str,
) -> Callable[[], Block]:
    def task() -> Block:
        findings = Findings()

        def seen(ref: TensorRef, first: int, data: np.ndarray[Any, Any]) -> None:
            counted.note(ref, first, data, findings)
            if ref.dtype == "F64":
                _add(findings.overflowed, outputs[0].name, _beyond_float32(data))

        with mx.stream(_stream()):
            rows = Evaluator(on_leaf=seen).rows(value, *span)
            arrays = _parts(outputs, rows, quantizer)
            mx.eval(rows, *arrays)
            _note_overflow(outputs[0], rows, value, span, findings)
            if outputs[0].quant is not None and not findings.nonfinite:
                _note_scales(outputs, arrays, findings)
            parts = tuple(
                (output.name, offsets[output.name], to_bytes(array))
                for output, array in zip(outputs, arrays, strict=True)
            )
        return Block(parts, findings)

    return task


def _parts(outputs: list[Output], rows: mx.array, quantizer: str) -> list[mx.array]:
    quant = outputs[0].quant
    if quant is None:
        return [rows for _ in outputs]
    named = dict(zip(PARTS, quantize_rows(rows, quant, quantizer), strict=False))
    return [named[output.part] for output in outputs]


def _note_overflow(output: Output, rows: mx.array, value: Value, span: tuple[int, int], findings: Findings) -> None:
    """Count what a narrowing cast made infinite: not finite in the result, and finite when no cast is done."""
    if value.leaf is not None or not _nonfinite(rows):
        return
    wide = Evaluator(widen=True).rows(value, *span)
    count = int(np.count_nonzero(np.array(mx.isfinite(wide) & ~mx.isfinite(rows))))
    _add(findings.overflowed, output.name, count)


def _note_scales(outputs: list[Output], arrays: list[mx.array], findings: Findings) -> None:
    """Count scales and biases that are not finite though all weights are: a group's span overflowed."""
    for output, array in zip(outputs, arrays, strict=True):
        _add(findings.overflowed, output.name, _nonfinite(array))


def _nonfinite(array: mx.array) -> int:
    return count_nonfinite(to_bytes(array), st_dtype(array.dtype))


def _beyond_float32(data: np.ndarray[Any, Any]) -> int:
    """Number of finite float64 values that float32, the widest type of MLX's GPU, cannot hold."""
    words = data.view(np.float64)
    with np.errstate(over="ignore"):
        return int(np.count_nonzero(np.isfinite(words) & ~np.isfinite(words.astype(np.float32))))


def _opaque_task(tensors: list[OutTensor], lazy: dict[str, mx.array]) -> Callable[[], Block]:
    """Evaluate whole outputs of an untraceable pipeline here and now, on this thread's stream, and let go of them."""
    findings = Findings()
    parts = []
    for tensor in tensors:
        data = to_bytes(lazy.pop(tensor.name))
        if count := count_nonfinite(data, tensor.dtype):
            findings.nonfinite[tensor.name] = count
        parts.append((tensor.name, 0, data))
    block = Block(tuple(parts), findings)
    return lambda: block
