"""``torch.cond`` whose functions cost little: both are computed, and ``where`` chooses.

To call one of the two waits for the value, which costs more than a few operations on each element.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from mlxport.graph.lower.traits import View, traits_of

__all__ = ["choose_by_value"]

_MOST = 8  # operations of one function
_COND = torch.ops.higher_order.cond
_WHERE = torch.ops.aten.where.self


def choose_by_value(graph: Graph) -> None:
    """Write such functions in place."""
    for node in list(graph.nodes):
        if node.target is _COND and isinstance(node.args[0], Node) and _is_array(node.args[0]):
            branches = [_branch(given) for given in node.args[1:3]]
            if all(_costs_little(branch.graph) for branch in branches) and _used_in_parts(node):
                _write_in_place(graph, node, branches)


def _is_array(node: Any) -> bool:
    return isinstance(node, Node) and isinstance(node.meta.get("val"), torch.Tensor)


def _branch(node: Any) -> GraphModule:
    return getattr(node.graph.owning_module, str(node.target))  # type: ignore[no-any-return]


def _costs_little(graph: Graph) -> bool:
    """Whether it computes each element by itself: nothing that may cost more, or fail where it is not chosen."""
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    kinds = [traits_of(node) for node in nodes]
    cheap = (kind.pointwise or kind.creation or kind.view not in (None, View.PART) for kind in kinds)
    outputs = graph.output_node().args[0]
    return len(nodes) <= _MOST and all(cheap) and all(map(_is_array, outputs))  # type: ignore[arg-type]


def _used_in_parts(node: Node) -> bool:
    return all(len(user.args) == 2 and isinstance(user.args[1], int) for user in node.users)


def _write_in_place(graph: Graph, node: Node, branches: list[GraphModule]) -> None:
    condition: Any = node.args[0]
    operands: Any = node.args[3]
    with graph.inserting_before(node):
        results: list[Any] = []
        for branch in branches:
            holders = [inner for inner in branch.graph.nodes if inner.op == "placeholder"]
            copies: dict[Node, Any] = dict(zip(holders, operands, strict=True))
            for inner in branch.graph.nodes:
                if inner.op == "call_function":
                    copies[inner] = graph.node_copy(inner, copies.__getitem__)
                    copies[inner].meta["nn_module_stack"] = node.meta.get("nn_module_stack")
                    copies[inner].meta["stack_trace"] = condition.meta.get("stack_trace")
            results.append([copies[item] for item in branch.graph.output_node().args[0]])
        for user in list(node.users):
            when_true, when_false = (result[user.args[1]] for result in results)
            chosen = graph.call_function(_WHERE, (condition, when_true, when_false))
            chosen.meta = {**user.meta, "stack_trace": condition.meta.get("stack_trace")}
            user.replace_all_uses_with(chosen)
            graph.erase_node(user)
    given = node.args[1:3]
    graph.erase_node(node)
    for item in given:
        if isinstance(item, Node) and not item.users:
            graph.erase_node(item)
