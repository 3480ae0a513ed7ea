"""Slices that share out a tensor's last axis -> one split: queries, keys and values of one product, say."""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.rewrite.graph_queries import Editor, last_axis_slice, ndim, shape

__all__ = ["split_once"]


def split_once(captured: Captured) -> None:
    """Replace slices of one tensor that follow one another from its first number to its last."""
    for node in list(captured.graph.nodes):
        if node.op == "call_function" and ndim(node) >= 2 and isinstance(shape(node)[-1], int):
            parts = [user for user in node.users if _bounds(user, node) is not None]
            if len(parts) == len(node.users) > 1 and _share_out(parts, node):
                _split(captured, node, parts)


def _bounds(node: Node, source: Node) -> tuple[int, int] | None:
    """First number and end of a slice of the last axis that leaves none out."""
    bounds = last_axis_slice(node, source)
    return None if bounds is None or bounds[2] != 1 else bounds[:2]


def _share_out(parts: list[Node], source: Node) -> bool:
    """Whether slices in one module take every number once."""
    parts.sort(key=lambda part: _bounds(part, source) or (0, 0))
    bounds = [found for part in parts if (found := _bounds(part, source)) is not None]
    joined = all(before[1] == after[0] for before, after in zip(bounds, bounds[1:], strict=False))
    paths = {tuple(part.meta.get("nn_module_stack") or ()) for part in parts}
    return joined and bounds[0][0] == 0 and bounds[-1][1] == shape(source)[-1] and len(paths) == 1


def _split(captured: Captured, source: Node, parts: list[Node]) -> None:
    edit = Editor(captured, min(parts))
    sizes = [int(shape(part)[-1]) for part in parts]
    values = [part.meta["val"] for part in parts]
    made = edit.call(torch.ops.aten.split_with_sizes.default, source, sizes, -1, val=values)
    for index, part in enumerate(parts):
        piece = edit.call(operator.getitem, made, index, val=values[index])
        piece.meta["stack_trace"] = part.meta.get("stack_trace", "")
        part.replace_all_uses_with(piece)
    for part in parts:
        captured.graph.erase_node(part)
