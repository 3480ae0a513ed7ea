"""The unquantized weights of a conversion as blocks of rows, read where they are used."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import mlx.core as mx

from mlxport.quant.search import search_affine
from mlxport.transform import Evaluator, Program, Value, lazy_outputs, row_blocks
from mlxport.types import QuantSpec

__all__ = ["Weights", "rounded"]

_BLOCK_BYTES = 16 << 20  # of stored rows; as float32, with a rounded copy and what rounding works on, about ten times
# Models up to this size stay in memory once they are read.
_KEPT_BYTES = 256 << 20


def rounded(rows: mx.array, spec: QuantSpec, quantizer: str = "rtn") -> mx.array:
    """Rows as they are read back once they are stored with ``spec``, float32.

    Args:
        rows: In the dtype that is quantized, last dimension a multiple of the group size.
        spec: An affine setting.
        quantizer: ``rtn`` or ``search``.
    """
    how: dict[str, Any] = {"group_size": spec.group_size, "bits": spec.bits}
    words, scales, biases = search_affine(rows, **how) if quantizer == "search" else mx.quantize(rows, **how)
    return mx.dequantize(words, scales.astype(mx.float32), biases.astype(mx.float32), **how)


class Weights:
    """The weights of modules, by path.

    Args:
        program: From checkpoint tensors to unquantized output tensors.
        paths: Modules whose ``weight`` is asked for.
    """

    def __init__(self, program: Program, paths: list[str]) -> None:
        self._program = program
        self._outputs = {path: program.outputs[f"{path}.weight"] for path in paths}
        self._keep = sum(prod(o.shape) * o.dtype.size for o in self._outputs.values()) <= _KEPT_BYTES
        self._kept: dict[tuple[str, int, int], mx.array] = {}

    def shape(self, path: str) -> tuple[int, ...]:
        """Of the whole weight."""
        return self._outputs[path].shape

    def blocks(self, path: str) -> Iterator[tuple[int, int]]:
        """Ranges of rows, each small enough to work on."""
        value = self._outputs[path].value
        if value is None:
            yield 0, self.shape(path)[0]
        else:
            yield from row_blocks(value, None, _BLOCK_BYTES)

    def rows(self, path: str, start: int, stop: int) -> mx.array:
        """Rows [start, stop) in the dtype that is stored, evaluated."""
        key = (path, start, stop)
        if key in self._kept:
            return self._kept[key]
        value = self._outputs[path].value
        array = self._opaque(path)[start:stop] if value is None else _computed(value, start, stop)
        mx.eval(array)
        if self._keep:
            self._kept[key] = array
        return array

    def whole(self, path: str) -> mx.array:
        """All rows."""
        return self.rows(path, 0, self.shape(path)[0])

    def _opaque(self, path: str) -> mx.array:
        return lazy_outputs(self._program)[f"{path}.weight"]


def _computed(value: Value, start: int, stop: int) -> mx.array:
    return Evaluator().rows(value, start, stop)
