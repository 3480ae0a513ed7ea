"""Permutes of activations in a graph: making, merging and moving them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

__all__ = ["PERMUTE", "axes_of", "give_back", "inverse_of", "is_permuted", "permute", "result_ndim", "to_last"]

PERMUTE = torch.ops.aten.permute.default


def permute(graph: Graph, source: Node, axes: Sequence[int], meta: dict[str, Any]) -> Node:
    """``source`` with its axes permuted, merged with a permute that made it; insert at the graph's insertion point."""
    if source.target is PERMUTE:
        inner = axes_of(source)
        axes = [inner[axis] for axis in axes]
        source = source.args[0]
    if list(axes) == list(range(len(axes))):
        return source
    node = graph.call_function(PERMUTE, (source, list(axes)))
    node.meta = {key: meta[key] for key in ("nn_module_stack", "stack_trace") if key in meta}
    node.meta["val"] = source.meta["val"].permute(list(axes))
    return node


def axes_of(node: Node) -> list[int]:
    """The axes that a permute node takes, in order."""
    ndim = node.meta["val"].ndim
    return [axis % ndim for axis in node.args[1]]


def to_last(ndim: int, axis: int) -> list[int]:
    """The order that puts ``axis`` last."""
    return [*(other for other in range(ndim) if other != axis), axis]


def inverse_of(axes: Sequence[int]) -> list[int]:
    """The order that undoes ``axes``."""
    return [list(axes).index(axis) for axis in range(len(axes))]


def is_permuted(item: Any) -> bool:
    """Whether a permute makes the value."""
    return isinstance(item, Node) and item.target is PERMUTE


def result_ndim(node: Node) -> int:
    """Number of axes of the result, of the first one of several."""
    value = node.meta["val"]
    return int((value if isinstance(value, torch.Tensor) else value[0]).ndim)


def give_back(graph: Graph, node: Node, axes: Sequence[int]) -> bool:
    """``node`` now computes in the inner order: give the users of its results the outer order by ``axes``."""
    inverse = inverse_of(axes)
    value = node.meta["val"]
    if isinstance(value, tuple | list):
        node.meta["val"] = tuple(item.permute(inverse) for item in value)
        return all([give_back(graph, user, axes) for user in list(node.users)])
    node.meta["val"] = value.permute(inverse)
    users = list(node.users)
    with graph.inserting_after(node):
        back = permute(graph, node, axes, node.meta)
    if back is not node and "variable" in node.meta:
        back.meta["variable"] = node.meta["variable"]
    for user in users:
        user.replace_input_with(node, back)
    return True
