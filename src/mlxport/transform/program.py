"""The graph that a trace keeps: values, the calls that make them, and the outputs of a program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlxport.types import QuantSpec, TensorRef

Pipeline = Callable[[dict[str, mx.array]], dict[str, mx.array]]


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """One MLX primitive: its name, inputs and arguments as ``mx.export_function`` reports them."""

    op: str
    inputs: tuple[Value, ...]
    args: tuple[Any, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """A lazily computable array: a checkpoint tensor (``leaf``), a constant, or output ``index`` of ``call``."""

    shape: tuple[int, ...]
    dtype: mx.Dtype
    call: Call | None = None
    index: int = 0
    leaf: TensorRef | None = None
    constant: mx.array | None = None

    def cone(self) -> Iterator[Value]:
        """This value and everything that it is computed from, each once."""
        stack, seen = [self], set()
        while stack:
            value = stack.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            yield value
            if value.call is not None:
                stack.extend(value.call.inputs)

    def leaves(self) -> tuple[TensorRef, ...]:
        """The checkpoint tensors that this value is computed from."""
        return tuple(value.leaf for value in self.cone() if value.leaf is not None)


@dataclass(frozen=True, eq=False, slots=True)
class Output:
    """One named output of a program.

    Attributes:
        name: Key in the output files.
        shape: Dimensions.
        dtype: MLX dtype.
        value: What it is computed from; None where the trace could not follow (``Program.opaque`` computes it).
        quant: If set, this is ``part`` of ``mx.quantize(value)``.
        part: ``weight``, ``scales`` or ``biases``; empty for the value itself.
    """

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    value: Value | None
    quant: QuantSpec | None = None
    part: str = ""


@dataclass(frozen=True)
class Program:
    """The map from checkpoint tensors to output tensors.

    Attributes:
        refs: Checkpoint tensors by name.
        outputs: Output tensors by name, in the order in which they are written.
        pipeline: The traced function itself, for outputs that the trace could not follow.
        quantizer: How quantized outputs are computed, as in ``quant.QuantRequest``.
    """

    refs: Mapping[str, TensorRef]
    outputs: Mapping[str, Output]
    pipeline: Pipeline = field(repr=False)
    quantizer: str = "rtn"

    def passthrough(self, name: str) -> str | None:
        """The checkpoint tensor that output ``name`` is, unchanged, or None."""
        output = self.outputs[name]
        if output.value is None or output.value.leaf is None or output.quant is not None:
            return None
        return output.value.leaf.name if output.value.leaf.dtype != "F64" else None

    def unused(self) -> tuple[str, ...]:
        """Checkpoint tensors that no output needs."""
        if any(output.value is None for output in self.outputs.values()):
            return ()
        used = {ref.name for output in self.outputs.values() if output.value for ref in output.value.leaves()}
        return tuple(name for name in self.refs if name not in used)
