"""Which of the names that one statement assigns is that of which value, told before any rewriting.

By position: the part of a split, the place in a tensor, the place in a list of expressions. Where none of these tells,
values get no name of the statement: a wrong one is worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.origin import Statement, module_path, statement
from mlxport.graph.lower.loop_ops import loops_of

__all__ = ["name_assigned", "tell_assigned_names"]

_Place = tuple[Any, ...]


def tell_assigned_names(captured: Captured) -> None:
    """Put ``variable`` into the meta of each value whose name is certain."""
    name_assigned(captured.graph, captured.modules)


def name_assigned(graph: Graph, modules: Mapping[str, torch.nn.Module]) -> None:
    """The same of a graph whose loops are not rolled up yet: in a loop that is, values have got their names before."""
    groups: dict[tuple[str, Statement], list[Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and not loops_of(node):
            made = statement(node, modules.get(module_path(node)))
            if made is not None and len(made.names) > 1:
                call = next(reversed(node.meta.get("nn_module_stack") or {"": None}))
                groups.setdefault((call, made), []).append(node)
    for (_, made), nodes in groups.items():
        inside = set(nodes)
        leaving = [node for node in nodes if _is_value(node) and not inside.issuperset(node.users)]
        for node, name in (_in_order(leaving, made) if made.computed else _by_place(leaving, made, inside)).items():
            if name != "_":
                node.meta["variable"] = name


def _is_value(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _in_order(leaving: list[Node], made: Statement) -> dict[Node, str]:
    """Names of values that are computed one after another, maybe in each turn of a loop."""
    count = len(made.computed)
    if len(leaving) % count:
        return {}
    return {node: made.names[made.computed[place % count]] for place, node in enumerate(leaving)}


def _by_place(leaving: list[Node], made: Statement, inside: set[Node]) -> dict[Node, str]:
    """Names of the parts of one value."""
    parts: dict[_Place, dict[int, Node]] = {}
    for node in leaving:
        place = _place(node, inside)
        if place is None:
            return {}
        of, index = place
        if not 0 <= index < len(made.names) or parts.setdefault(of, {}).setdefault(index, node) is not node:
            return {}
    return {node: made.names[index] for found in parts.values() for index, node in found.items()}


def _place(node: Node, inside: set[Node]) -> tuple[_Place, int] | None:
    """Which part of what a value is: what it is taken of, and its index there."""
    while node in inside:
        name = getattr(node.target, "__name__", "").partition(".")[0]
        if name == "getitem":
            return (node.args[0],), node.args[1]  # type: ignore[return-value]
        if name == "select":
            source, axis, index = node.args
            if not isinstance(index, int):
                return None
            return (source, axis), index if index >= 0 else index + source.meta["val"].shape[axis]  # type: ignore
        before = [item for item in node.all_input_nodes if _is_value(item) or item.op == "call_function"]
        if len(before) != 1:
            return None
        (node,) = before
    return None
