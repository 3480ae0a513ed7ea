"""Parts written side by side into an empty tensor -> ``cat``.

``keys[..., :n] = unturned; keys[..., n:] = turned`` is captured as one scatter after another into what held nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.rewrite.fuse.fusion import Fusion
from mlxport.graph.rewrite.fuse.values import Values
from mlxport.graph.rewrite.graph_queries import Editor, kind, ndim, same_shape, shape, where

__all__ = ["apply"]

_aten = torch.ops.aten
_EMPTY = frozenset({"empty", "new_empty", "empty_like"})


def apply(captured: Captured, values: Values) -> Iterable[Fusion]:
    """Join what is scattered into an empty tensor, where the parts fill it, each number once."""
    for node in reversed(list(captured.graph.nodes)):
        if kind(node) != "slice_scatter" or not node.users or any(_continues(user, node) for user in node.users):
            continue
        found = _parts(node)
        if found is not None:
            axis, parts = found
            place, edit = where(node), Editor(captured, node)
            edit.replace(edit.call(_aten.cat.default, parts, axis, val=node.meta["val"]))
            yield Fusion("concatenation", place)


def _continues(user: Node, node: Node) -> bool:
    return kind(user) == "slice_scatter" and user.args[0] is node


def _parts(last: Node) -> tuple[int, list[Node]] | None:
    """The axis and the parts in order, of a chain of scatters that ends with ``last``."""
    axis = _place(last)[0]
    size = shape(last)[axis]
    placed: dict[int, tuple[int, Node]] = {}
    node: Node = last
    while kind(node) == "slice_scatter":
        at, start, end, step = _place(node)
        part = _copied(node.args[1])
        if at != axis or step != 1 or part is None or not isinstance(size, int):
            return None
        end = size if end is None else min(end, size)
        if not isinstance(start, int) or start < 0 or end < 0 or start in placed:
            return None
        placed[start] = end, part
        node = node.args[0]
    if kind(node) not in _EMPTY:
        return None
    parts = _in_order(placed, axis, size)
    dtypes = {part.meta["val"].dtype for part in parts or ()}
    return (axis, parts) if parts and dtypes == {last.meta["val"].dtype} else None


def _place(node: Node) -> tuple[int, Any, Any, Any]:
    """Axis, start, end and step of a scatter."""
    given: tuple[Any, ...] = tuple(node.args[2:])
    axis, start, end, step = given + (0, None, None, 1)[len(given) :]
    return axis % ndim(node), start or 0, end, step


def _in_order(placed: Mapping[int, tuple[int, Node]], axis: int, size: int) -> list[Node] | None:
    """The parts, where each starts at the end of the one before, and the last ends with the tensor."""
    filled, parts = 0, []
    for start, (end, part) in sorted(placed.items(), key=lambda item: item[0]):
        if start != filled or shape(part)[axis] != end - start:
            return None
        filled = end
        parts.append(part)
    return parts if filled == size else None


def _copied(part: Any) -> Node | None:
    """What a part of the tensor was overwritten with, in the part's sizes."""
    if not isinstance(part, Node) or kind(part) != "copy":
        return part if isinstance(part, Node) else None
    source = part.args[1]
    same = isinstance(source, Node) and source.meta["val"].dtype == part.meta["val"].dtype
    return source if same and same_shape(source.meta["val"], part.meta["val"]) else None
