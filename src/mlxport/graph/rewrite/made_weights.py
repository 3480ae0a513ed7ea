"""Weights of a port that are made of the module's: some rows of one, several in a stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.fx import Graph, Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.layer_specs import Fold

__all__ = ["make_weight"]


def make_weight(
    captured: Captured,
    folds: dict[str, Fold],
    name: str,
    sources: Mapping[str, Any],
    make: Callable[[Graph, Sequence[Node]], Node],
) -> Node:
    """A placeholder for a weight called ``name``, which is there already where something else asked for it.

    Args:
        captured: Its graph gets the placeholder.
        folds: Gets how the weight is computed.
        name: One that the module has for nothing else.
        sources: Names of the module's tensors, or of one of ``folds``, to their fake tensors.
        make: Writes the ops on the sources into a graph, and gives the last, with its fake tensor.
    """
    for known, other in captured.weights.items():
        if other == name:
            return known
    graph, parts = Graph(), list[Node]()
    names: list[str] = []
    for source, fake in sources.items():
        if source in folds:
            given, made = _copied(graph, folds[source], len(names))
            names += given
        else:
            made = graph.placeholder(f"w{len(names)}")
            made.meta = {"val": fake}
            names.append(source)
        parts.append(made)
    made = make(graph, parts)
    graph.output((made,))
    with captured.graph.inserting_before(next(iter(captured.graph.nodes))):
        node = captured.graph.placeholder(name.rpartition(".")[2])
    node.meta = {"val": made.meta["val"]}
    captured.weights[node] = name
    captured.trainable |= {name}
    folds[name] = Fold(tuple(names), graph)
    return node


def _copied(graph: Graph, fold: Fold, count: int) -> tuple[list[str], Node]:
    """The ops of another fold in ``graph``, which has ``count`` placeholders: names of its sources, and its result."""
    copies: dict[Node, Node] = {}
    for node in fold.graph.nodes:
        if node.op == "placeholder":
            copies[node] = graph.placeholder(f"w{count + len(copies)}")
        elif node.op != "output":
            copies[node] = graph.node_copy(node, lambda item: copies[item])
        else:
            (result,) = node.args[0]
            return list(fold.sources), copies[result]
        copies[node].meta = dict(node.meta)
    raise AssertionError("a fold without a result")
