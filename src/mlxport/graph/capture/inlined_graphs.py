"""Operators that only call the graph that they are given: their nodes put in their place."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.fx import Graph, Node

__all__ = ["inline_graphs"]

_OPERANDS = {"strict_mode": 1}  # which argument of an operator has the operands of its graph, which is the first


def inline_graphs(graph: Graph) -> None:
    """Put the nodes of such graphs into ``graph``; ``out_dtype`` becomes its op on what is cast before."""
    for node in list(graph.nodes):
        if not isinstance(node.target, HigherOrderOperator):
            continue
        if str(node.target) in _OPERANDS:
            _inline(graph, node, node.args[_OPERANDS[str(node.target)]])
        elif str(node.target) == "out_dtype":
            _cast_before(graph, node)


def _inline(graph: Graph, node: Node, operands: Any) -> None:
    inner = getattr(graph.owning_module, str(node.args[0].target)).graph
    inline_graphs(inner)
    copies = dict(zip(inner.find_nodes(op="placeholder"), operands, strict=True))
    with graph.inserting_before(node):
        made = graph.graph_copy(inner, copies)
    for user in list(node.users):
        user.replace_all_uses_with(made[user.args[1]])  # type: ignore[index]
        graph.erase_node(user)
    graph.erase_node(node)


def _cast_before(graph: Graph, node: Node) -> None:
    operator, dtype, *operands = node.args
    cast = []
    with graph.inserting_before(node):
        for operand in operands:
            if isinstance(operand, Node):
                value = operand.meta["val"]
                operand = graph.call_function(torch.ops.aten._to_copy.default, (operand,), {"dtype": dtype})
                operand.meta = {**node.meta, "val": value.to(dtype)}
            cast.append(operand)
    node.target, node.args = operator, tuple(cast)  # type: ignore[assignment]
