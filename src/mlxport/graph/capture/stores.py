"""What a module writes while it runs, its buffers and its inputs, as nodes of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.fx import Graph, Node
from torch.fx.node import has_side_effect

__all__ = ["add_stores", "store"]


def store(value: Any) -> Any:
    """The target of a node that keeps a value; ``node.meta["store"]`` is the buffer's name, or the input's node."""
    raise NotImplementedError


has_side_effect(store)


def add_stores(graph: Graph, mutations: Sequence[tuple[str | Node, Node]], weights: Mapping[Node, str]) -> None:
    """Add a node at the end of the graph for each value that a buffer or an input takes.

    It belongs to the innermost module that both computes the value and has the buffer.
    """
    output = next(node for node in graph.nodes if node.op == "output")
    for place, value in mutations:
        if place is value or weights.get(value) == place:
            continue  # it keeps its value
        with graph.inserting_before(output):
            made = graph.call_function(store, (value,))
        stack = value.meta.get("nn_module_stack") or {}
        owner = place + "." if isinstance(place, str) else ""
        made.meta = {
            "store": place,
            "nn_module_stack": {
                key: entry
                for key, entry in stack.items()
                if not entry[0] or owner.startswith(entry[0].partition("@")[0] + ".")
            },
        }
