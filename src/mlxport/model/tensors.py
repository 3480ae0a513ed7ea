"""Tensors that are not in memory: of a written folder, or computed from a checkpoint by a traced program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from mlxport.source import read_rows
from mlxport.source.safetensors_file import read_safetensors
from mlxport.transform import (
    BLOCK_BYTES,
    Evaluator,
    Output,
    Program,
    lazy_arrays,
    lazy_outputs,
    mx_dtype,
    row_blocks,
    to_mx,
)
from mlxport.types import TensorRef

__all__ = [
    "ComputedTensor",
    "StoredTensor",
    "Tensor",
    "computed_tensors",
    "output_refs",
    "stored_tensors",
    "whole",
]


class Tensor(Protocol):
    """A tensor that is not in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""

    @property
    def dtype(self) -> mx.Dtype:
        """Of its elements, as it is stored or computed."""

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""

    def rows(self, start: int, stop: int) -> mx.array:
        """Rows [start, stop) along axis 0."""

    def blocks(self, nbytes: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
        """Ranges of rows that work on about so many bytes, at least one row each."""

    def lazy(self) -> mx.array:
        """The whole of it, unevaluated."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a written file."""

    ref: TensorRef

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""
        return self.ref.shape

    @property
    def dtype(self) -> mx.Dtype:
        """Of the file."""
        return mx_dtype(self.ref)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.ref.nbytes

    def rows(self, start: int, stop: int) -> mx.array:
        """Read now."""
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        return to_mx(read_rows(self.ref, start, stop), self.ref, shape)

    def blocks(self, nbytes: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
        """See ``Tensor``."""
        count = self.shape[0] if self.shape else 1
        step = max(1, nbytes * count // max(self.nbytes, 1))
        yield from ((start, min(start + step, count)) for start in range(0, count, step))

    def lazy(self) -> mx.array:
        """Read when it is needed."""
        files: Any = mx.load(str(self.ref.path))
        array: mx.array = files[self.ref.name_in_file]
        return array


@dataclass(frozen=True)
class ComputedTensor:
    """An output of a program, computed from the tensors of a checkpoint."""

    program: Program
    output: Output
    # What the trace could not follow is made by the pipeline itself, all outputs at once: they are shared, and each is
    # let go of as soon as it was asked for.
    _untraced: dict[str, mx.array] = field(repr=False)
    _kept: dict[tuple[str, int, int], mx.array] | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""
        return self.output.shape

    @property
    def dtype(self) -> mx.Dtype:
        """As the program makes it."""
        return self.output.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its elements in the program's dtype."""
        return prod(self.shape) * self.dtype.size

    def rows(self, start: int, stop: int) -> mx.array:
        """From just the bytes that they need, where the program was traced; where they are kept, evaluated."""
        if self._kept is None:
            return self._computed(start, stop)
        key = (self.output.name, start, stop)
        if key not in self._kept:
            self._kept[key] = self._computed(start, stop)
            mx.eval(self._kept[key])
        return self._kept[key]

    def _computed(self, start: int, stop: int) -> mx.array:
        if self.output.value is None:
            return mx.contiguous(self.lazy()[start:stop])
        return Evaluator().rows(self.output.value, start, stop)

    def blocks(self, nbytes: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
        """See ``Tensor``; what the trace could not follow is one block."""
        if self.output.value is None:
            yield 0, self.shape[0] if self.shape else 1
        else:
            yield from row_blocks(self.output.value, None, nbytes)

    def lazy(self) -> mx.array:
        """The whole of it, unevaluated."""
        if self.output.value is not None:
            leaves = {ref.name: ref for ref in self.output.value.leaves()}
            return Evaluator(arrays=lazy_arrays(leaves)).full(self.output.value)
        if self.output.name not in self._untraced:
            self._untraced.update(lazy_outputs(self.program))
        return self._untraced.pop(self.output.name)


def whole(tensor: Tensor) -> mx.array:
    """All of a tensor, evaluated a block of rows at a time."""
    if isinstance(tensor, StoredTensor):
        array = tensor.lazy()
        mx.eval(array)
        return array
    parts = []
    for start, stop in tensor.blocks():
        parts.append(tensor.rows(start, stop))
        mx.eval(parts[-1])
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def output_refs(folder: Path) -> dict[str, TensorRef]:
    """Where each tensor of the output lies, from the headers of its files."""
    files = sorted(Path(folder).glob("model*.safetensors"))
    return {name: ref for path in files for name, ref in read_safetensors(path).items()}


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a written folder by name."""
    return {name: StoredTensor(ref) for name, ref in output_refs(folder).items()}


def computed_tensors(program: Program, keep: int = 0) -> dict[str, Tensor]:
    """The outputs of a program by name.

    Args:
        program: From checkpoint tensors to them.
        keep: Where all of them take at most so many bytes, rows stay in memory once they are computed: for small models
            that are read again and again.
    """
    untraced: dict[str, mx.array] = {}
    small = sum(prod(output.shape) * output.dtype.size for output in program.outputs.values()) <= keep
    kept: dict[tuple[str, int, int], mx.array] | None = {} if small else None
    return {name: ComputedTensor(program, output, untraced, kept) for name, output in program.outputs.items()}
