"""The graph of one call of a model, recorded without computing it, in the order in which MLX evaluates it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import mlx.core as mx

from mlxport.transform.exported import Slot, export

__all__ = ["Graph", "Node", "record"]

# MLX builds its tape breadth first up to this width (`MLX_BFS_MAX_WIDTH`, mlx/transforms.cpp).
_WIDTH = 20


@dataclass(frozen=True, slots=True)
class Node:
    """One primitive: its name, the keys of what it reads and makes, and its arguments."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Graph:
    """A function as MLX records it.

    Attributes:
        nodes: The primitives that the outputs need, in the order of evaluation.
        inputs: Keys of the inputs, in the order of the arguments.
        constants: Keys of arrays that the function holds itself.
        outputs: Keys of the outputs.
        shapes: Key to shape.
        widths: Key to bytes of an element.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    widths: dict[str, int]

    def nbytes(self, key: str) -> int:
        """Bytes of an array."""
        return prod(self.shapes[key]) * self.widths[key]


def record(function: Callable[..., list[mx.array]], arguments: Sequence[mx.array]) -> Graph:
    """Trace ``function`` on placeholders like ``arguments``; nothing is evaluated.

    Raises:
        ValueError: The function looks at values, or uses a primitive that MLX cannot export.
    """
    graph = export(function, arguments)
    made = [slot for primitive in graph.primitives for slot in primitive.outputs]
    slots = [*graph.inputs, *made, *graph.outputs]
    slots += [Slot(key, tuple(array.shape), array.dtype) for key, array in graph.constants.items()]
    nodes = [Node(p.name, p.inputs, tuple(slot.key for slot in p.outputs), p.arguments) for p in graph.primitives]
    inputs, outputs = (tuple(slot.key for slot in ends) for ends in (graph.inputs, graph.outputs))
    return Graph(
        nodes=_evaluation_order(nodes, outputs),
        inputs=inputs,
        constants=tuple(graph.constants),
        outputs=outputs,
        shapes={slot.key: slot.shape for slot in slots},
        widths={slot.key: slot.dtype.size for slot in slots},
    )


def _evaluation_order(nodes: Sequence[Node], outputs: tuple[str, ...]) -> tuple[Node, ...]:
    """The tape of ``eval_impl`` (mlx/transforms.cpp): back from the outputs, breadth first up to a width."""
    made = {key: index for index, node in enumerate(nodes) for key in node.outputs}
    waiting = _consumers(nodes, outputs, made)
    tape: list[int] = []
    queue: list[tuple[str, ...]] = [outputs]
    postponed: list[tuple[tuple[str, ...], int]] = []
    position = 0
    while position < len(queue) or postponed:
        if position < len(queue):
            keys, start = queue[position], 0
            position += 1
        else:
            keys, start = postponed.pop()
        for offset in range(start, len(keys)):
            index = made.get(keys[offset])
            if index is None:
                continue
            if len(queue) - position >= _WIDTH:
                postponed.append((keys, offset))
                break
            waiting[index] -= 1
            if not waiting[index]:
                tape.append(index)
                queue.append(nodes[index].inputs)
    return tuple(nodes[index] for index in reversed(tape))


def _consumers(nodes: Sequence[Node], outputs: tuple[str, ...], made: dict[str, int]) -> Counter[int]:
    """How often what each needed node makes is read."""
    counts: Counter[int] = Counter()
    reached: set[int] = set()
    stack = [outputs]
    while stack:
        for key in stack.pop():
            index = made.get(key)
            if index is None:
                continue
            counts[index] += 1
            if index not in reached:
                reached.add(index)
                stack.append(nodes[index].inputs)
    return counts
