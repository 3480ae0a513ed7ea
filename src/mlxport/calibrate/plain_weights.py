"""The weights of a conversion under mlx-lm's names, not quantized, whole or by rows, read as they are asked for."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from mlxport.transform import Evaluator, Program, lazy_outputs, row_blocks

__all__ = ["Rows", "Weights"]

Rows = Callable[[int, int], mx.array]


class Weights:
    """Reads outputs of a program that quantizes nothing."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._lazy: dict[str, mx.array] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._program.outputs

    def shape(self, name: str) -> tuple[int, ...]:
        """Dimensions of a tensor."""
        return self._program.outputs[name].shape

    def dtype(self, name: str) -> mx.Dtype:
        """Of a tensor as it is stored when it is not quantized."""
        return self._program.outputs[name].dtype

    def rows(self, name: str, start: int, stop: int) -> mx.array:
        """Rows [start, stop) along axis 0, evaluated."""
        value = self._program.outputs[name].value
        if value is None:
            rows = mx.contiguous(self._opaque(name)[start:stop])
        else:
            rows = Evaluator().rows(value, start, stop)
        mx.eval(rows)
        return rows

    def whole(self, name: str) -> mx.array:
        """A whole tensor, evaluated."""
        value = self._program.outputs[name].value
        if value is None:
            array = self._opaque(name)
            mx.eval(array)
            return array
        parts = []
        for start, stop in row_blocks(value):
            parts.append(Evaluator().rows(value, start, stop))
            mx.eval(parts[-1])
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def _opaque(self, name: str) -> mx.array:
        """What the trace could not follow: the pipeline's own lazy array, let go of as soon as it was asked for."""
        if name not in self._lazy:
            self._lazy = lazy_outputs(self._program)
        return self._lazy.pop(name)
