"""What each token takes of the one before it: a shift by one, the first taking what the last left."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.lower import cache_ops
from mlxport.graph.lower.traits import traits_of
from mlxport.graph.rewrite.caches.cached_step import CachedStep
from mlxport.graph.rewrite.graph_queries import Editor, kind, ndim, peel, shape

__all__ = ["shift_by_one", "shifted"]


def shifted(held: Node, written: Any) -> Node | None:
    """The op that puts ``held`` before all of ``x`` [batch, length, channels] but its last, which is ``written``."""
    if kind(written) != "select" or ndim(written.args[0]) != 3 or tuple(written.args[1:]) != (1, -1):
        return None
    x = written.args[0]
    for node in _made_of(held):
        if kind(node) == "cat" and _is_cat(node, held, x) or kind(node) == "select_scatter" and _is_pad(node, held, x):
            return node
    return None


def _made_of(held: Node) -> list[Node]:
    """What is made of ``held`` after copies and a new axis."""
    found: list[Node] = []
    for user in held.users:
        if traits_of(user).copy or kind(user) in ("copy", "unsqueeze"):
            found += user.users
        else:
            found.append(user)
    return found


def _is_cat(node: Node, held: Node, x: Node) -> bool:
    """``cat([held[:, None], x[:, :-1]], 1)``."""
    parts: Any = node.args[0]
    if len(parts) != 2 or node.args[1:] not in ((1,), (-2,)):
        return False
    first, rest = parts
    one = kind(first) == "unsqueeze" and first.args == (held, 1)
    return one and kind(rest) == "slice" and rest.args[0] is x and tuple(rest.args[1:]) in ((1, 0, -1), (1, None, -1))


def _is_pad(node: Node, held: Node, x: Node) -> bool:
    """``x`` padded before its first token and cut after its last but one, ``held`` written over the first."""
    padded, first, axis, index = node.args
    if (axis, index) != (1, 0) or kind(padded) not in ("pad", "constant_pad_nd") or padded.args[0] is not x:  # type: ignore[union-attr]
        return False
    return list(padded.args[1]) == [0, 0, 1, -1] and _copied(first) is held  # type: ignore[union-attr, arg-type]


def _copied(node: Any) -> Any:
    """What is copied, to wherever."""
    while kind(node) == "copy" or traits_of(node).copy:
        node = node.args[1] if kind(node) == "copy" else node.args[0]
    return peel(node)


def shift_by_one(step: CachedStep, node: Node, x: Node, place: tuple[Any, ...]) -> None:
    """``with_past(x, 1, cache, 0, mask)[:, :-1]`` in the place of ``node``."""
    edit = Editor(step.captured, node)
    batch, length, channels = shape(x)
    after = edit.call(
        cache_ops.with_past, x, 1, *place, val=step.fake((batch, length + 1, channels), x.meta["val"].dtype)
    )
    edit.replace(edit.call(torch.ops.aten.slice.Tensor, after, 1, 0, -1, val=node.meta["val"]))
