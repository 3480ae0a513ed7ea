"""What ``mx.export_function`` tells its callback of a function, read once for all who follow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

__all__ = ["Exported", "Primitive", "Slot", "export"]


class Slot(NamedTuple):
    """An array that is not there: what it is called in the records, its shape and dtype."""

    key: str
    shape: tuple[int, ...]
    dtype: mx.Dtype


@dataclass(frozen=True, slots=True)
class Primitive:
    """One operation: its name, the keys that it reads, what it makes, and its arguments (mlx/export.cpp)."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[Slot, ...]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Exported:
    """A function as a graph.

    Attributes:
        inputs: Its arguments, in their order.
        constants: Arrays that it holds itself, by key.
        primitives: In an order in which they can be computed.
        outputs: What it returns.
    """

    inputs: tuple[Slot, ...]
    constants: dict[str, mx.array]
    primitives: tuple[Primitive, ...]
    outputs: tuple[Slot, ...]


def export(function: Callable[..., list[mx.array]], arguments: Sequence[mx.array]) -> Exported:
    """Run ``function`` on placeholders like ``arguments``; nothing is evaluated.

    Raises:
        ValueError: It looks at values, or uses a primitive that MLX cannot export.
    """
    ends: dict[str, tuple[Slot, ...]] = {}
    constants: dict[str, mx.array] = {}
    primitives: list[Primitive] = []

    def receive(record: dict[str, Any]) -> None:  # as they come: kept as dictionaries they take twice the memory
        kind = record["type"]
        if kind in ("inputs", "outputs"):
            ends[kind] = _slots(record[kind])
        elif kind == "constants":
            constants.update(record[kind])
        elif kind == "primitive":
            reads = tuple(key for key, _, _ in record["inputs"])
            primitives.append(Primitive(record["name"], reads, _slots(record["outputs"]), tuple(record["arguments"])))

    mx.export_function(receive, function, *arguments)
    return Exported(ends["inputs"], constants, tuple(primitives), ends["outputs"])


def _slots(described: Sequence[tuple[str, Sequence[int], mx.Dtype]]) -> tuple[Slot, ...]:
    return tuple(Slot(key, tuple(shape), dtype) for key, shape, dtype in described)
