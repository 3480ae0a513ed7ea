"""States that a model keeps in one tensor for all layers: taken apart, a part for each layer."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.stores import store
from mlxport.graph.lower.traits import traits_of
from mlxport.graph.rewrite.caches.cached_step import NotCached
from mlxport.graph.rewrite.graph_queries import kind

__all__ = ["take_apart"]


def take_apart(captured: Captured, example: Any) -> None:
    """Make inputs of the parts of ``example.stacks``, which the program reads and writes one at a time.

    Raises:
        NotCached: Something else is done with a stack.
    """
    for name, tensor in getattr(example, "stacks", {}).items():
        node = next(node for node, value in zip(captured.inputs, captured.values, strict=True) if value is tensor)
        if node is not None:
            _Stack(captured, example, name, node, tensor).take_apart()


class _Stack:
    def __init__(self, captured: Captured, example: Any, name: str, node: Node, tensor: torch.Tensor) -> None:
        self.captured, self.example, self.name, self.node, self.tensor = captured, example, name, node, tensor
        self.parts: dict[int, Node] = {}
        self.axis: int | None = None

    def take_apart(self) -> None:
        graph = self.captured.graph
        final = next((n for n in graph.nodes if n.target is store and n.meta["store"] is self.node), None)
        for node in [node for node in graph.nodes if kind(node) == "select" and self._of_stack(node.args[0])]:
            axis, index = node.args[1:]
            node.replace_all_uses_with(self._part_after(node.args[0], axis, index))
        written = self._written(final.args[0]) if final is not None else {}
        for index, value in written.items():
            part = self._part(index)
            with graph.inserting_before(final):
                kept = graph.call_function(store, (value,))
            kept.meta = {**value.meta, "store": part}
        if final is not None:
            graph.erase_node(final)
        graph.eliminate_dead_code()
        for user in list(self.node.users):
            if kind(user) != "sym_size" or user.args[1] == self.axis:
                raise NotCached(f"{self.node.name} holds states of all layers, and is used as a whole")
            axis = user.args[1] - (self.axis is not None and self.axis < user.args[1])
            user.args = (self._part(next(iter(self.parts), 0)), axis)
        place = self.captured.inputs.index(self.node)
        del self.captured.inputs[place], self.captured.values[place]
        graph.erase_node(self.node)

    def _of_stack(self, node: Any) -> bool:
        while isinstance(node, Node) and node is not self.node:
            node = node.args[0] if _passes(node) else None
        return node is self.node

    def _part_after(self, source: Node, axis: int, index: int) -> Node:
        """What a select of a stack, parts of which may have been written, gives."""
        while source is not self.node:
            if kind(source) == "select_scatter" and self._place(source) == self._index(axis, index):
                return source.args[1]
            source = source.args[0]
        return self._part(self._index(axis, index))

    def _written(self, final: Node) -> dict[int, Node]:
        """The last value of each part."""
        found: dict[int, Node] = {}
        while final is not self.node:
            if not _passes(final):
                raise NotCached(f"{self.node.name} holds states of all layers, and is written by {kind(final)}")
            if kind(final) == "select_scatter":
                found.setdefault(self._place(final), final.args[1])
            final = final.args[0]
        return found

    def _place(self, scatter: Node) -> int:
        return self._index(*(scatter.args[2:] if len(scatter.args) > 3 else (0, scatter.args[2])))

    def _index(self, axis: int, index: int) -> int:
        axis %= self.tensor.ndim
        if self.axis not in (None, axis):
            raise NotCached(f"{self.node.name} holds states of all layers along two axes")
        self.axis = axis
        return index % self.tensor.shape[axis]

    def _part(self, index: int) -> Node:
        """The input that holds the part of one layer."""
        if index not in self.parts:
            value = self.node.meta["val"]
            with self.captured.graph.inserting_after(self.node):
                made = self.captured.graph.placeholder(f"{self.node.name}_{index}")
            made.meta = {**self.node.meta, "val": value.select(self.axis, index)}
            tensor = self.tensor.select(self.axis or 0, index).clone()
            setattr(self.example.layers[index], f"part_{self.name}".replace(".", "_"), tensor)
            self.captured.inputs.append(made)
            self.captured.values.append(tensor)
            self.parts[index] = made
        return self.parts[index]


def _passes(node: Node) -> bool:
    """Whether ``node`` is its first input, at most with another part."""
    return kind(node) == "select_scatter" or traits_of(node).copy
