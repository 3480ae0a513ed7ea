"""The whole graph lowered: an expression for each node, before they are put into modules."""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.origin import module_path
from mlxport.graph.capture.stores import store
from mlxport.graph.lower import token_ops
from mlxport.graph.lower.expr import Expr
from mlxport.graph.lower.loop_ops import handed_on, is_loop_op, settle_loops
from mlxport.graph.lower.lowering import is_read, lower_node, symbolic
from mlxport.graph.lower.one_function import Gaps, is_assertion
from mlxport.graph.write.loop_syntax import lower_loop_op

__all__ = ["lower_graph"]

_AROUND = (token_ops.one_token, token_ops.all_tokens)


def lower_graph(captured: Captured) -> dict[Node, Any]:
    """The expression of every node that computes something; nodes that give another back are taken out of the graph."""
    graph = captured.graph
    settle_loops(graph)
    by_name = {node.name: node for node in graph.nodes}
    lowered: dict[Node, Any] = {}
    gaps = Gaps()
    for node in list(graph.nodes):
        if node.op != "call_function" or is_assertion(node) or _is_size(node):
            continue
        if node.target is store:
            lowered[node] = symbolic(node.args[0])
            continue
        if is_loop_op(node):
            lowered[node] = lower_loop_op(node)
            continue
        with gaps.at(node):
            result = _lowered(node, lowered)
            other = _alias(by_name, result)
            if other is not None and not gaps and node.target not in _AROUND:
                node.replace_all_uses_with(other)
                graph.erase_node(node)
            else:
                lowered[node] = result
    gaps.check()
    _take_out(captured, lowered)
    for node in reversed(list(lowered)):  # what only served nodes that are gone
        if not node.users and node.target not in (store, token_ops.keep_token, handed_on):
            graph.erase_node(node)
            del lowered[node]
    return lowered


def _take_out(captured: Captured, lowered: dict[Node, Any]) -> None:
    """Let the ops around modules that are called for each token go: they stand for one token, and for all, by its name.

    Whoever calls the module has to know what it takes one token of; ``meta["each_token"]`` says it.
    """
    names: dict[str, str] = {}
    for node in [node for node in lowered if node.target in _AROUND]:
        other: Any = node.args[0]
        names["%" + node.name] = "%" + other.name
        if node.target is token_ops.one_token:
            other.meta.setdefault("each_token", {})[module_path(node)] = node.args[1]
        node.replace_all_uses_with(other)
        captured.graph.erase_node(node)
        del lowered[node]
    if names:
        for name in (name for result in lowered.values() for name in _names(result)):
            name.id = names.get(name.id, name.id)


def _names(result: Any) -> Iterator[ast.Name]:
    """The names in an expression, or in several."""
    for item in result if isinstance(result, list | tuple) else [result]:
        if isinstance(item, Expr):
            yield from (name for name in ast.walk(item.node) if isinstance(name, ast.Name))


def _lowered(node: Node, lowered: Mapping[Node, Any]) -> Any:
    if node.target is operator.getitem and isinstance(lowered.get(node.args[0]), tuple):
        return lowered[node.args[0]][node.args[1]]
    return lower_node(node, symbolic)


def _is_size(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.SymInt | torch.SymBool | torch.SymFloat | int | bool) and not is_read(node)


def _alias(by_name: Mapping[str, Node], result: Any) -> Node | None:
    if isinstance(result, Expr) and isinstance(result.node, ast.Name) and result.node.id.startswith("%"):
        return by_name[result.node.id[1:]]
    return None
