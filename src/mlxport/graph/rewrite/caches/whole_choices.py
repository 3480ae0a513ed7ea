"""A choice of all that there are hides nothing: routers with one group of experts, or that choose all groups.

What marks the chosen marks everything then, and a mask that is made of the marks is known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.rewrite.fuse.values import CannotEvaluate, Values
from mlxport.graph.rewrite.graph_queries import ancestors, kind, ndim, same_shape, same_size, shape

__all__ = ["drop_whole_choices"]


def drop_whole_choices(captured: Captured, values: Values) -> None:
    """Take out the masks that such choices make, and what they alone are made of."""
    marked = {node: mark for node in captured.graph.nodes if (mark := _mark_of_all(node)) is not None}
    for node in list(captured.graph.nodes) if marked else []:
        known = _masked(node)
        if known is not None and _hides_nothing(values, marked, *known):
            node.replace_all_uses_with(node.args[0] if kind(node) == "masked_fill" else node.args[1])
    captured.graph.eliminate_dead_code()


def _mark_of_all(node: Node) -> float | None:
    """The number that is put at all places of the last axis, as all of them are chosen."""
    if kind(node) != "scatter" or len(node.args) != 4 or not isinstance(node.args[3], bool | int | float):
        return None
    _, axis, places, mark = node.args
    choice = places.args[0] if kind(places) == "getitem" and places.args[1] == 1 else None  # type: ignore[union-attr]
    if kind(choice) != "topk" or axis % ndim(node) != ndim(node) - 1:  # type: ignore[operator]
        return None
    dim: Any = choice.args[2] if len(choice.args) > 2 else choice.kwargs.get("dim", -1)  # type: ignore[union-attr]
    whole = same_size(choice.args[1], shape(choice.args[0])[dim]) and dim % ndim(node) == ndim(node) - 1  # type: ignore
    return mark if whole and same_shape(node.meta["val"], places.meta["val"]) else None  # type: ignore[union-attr]


def _masked(node: Node) -> tuple[Node, bool] | None:
    """The mask of numbers that ``node`` gives as they are where it shows them, and its value there."""
    if kind(node) == "masked_fill":
        source, mask, shown = node.args[0], node.args[1], False
    elif kind(node) == "where" and len(node.args) == 3:
        source, mask, shown = node.args[1], node.args[0], True
    else:
        return None
    if not isinstance(source, Node) or not isinstance(mask, Node):
        return None
    alike = same_shape(node.meta["val"], source.meta["val"]) and node.meta["val"].dtype == source.meta["val"].dtype
    return (mask, shown) if alike else None


def _hides_nothing(values: Values, marked: dict[Node, float], mask: Node, shown: bool) -> bool:
    """Whether a mask that is made of marks is ``shown`` everywhere: it is computed at several sizes."""
    marks = [node for node in marked if node in ancestors([mask])]
    try:
        for sizes in values.sizes() if marks else []:
            given = {node: torch.full(_numbers(values, node, sizes), marked[node]) for node in marks}
            (got,) = values.run([mask], {n: item.to(n.meta["val"].dtype) for n, item in given.items()}, sizes)
            if bool((got != shown).any()):
                return False
    except CannotEvaluate:
        return False
    return bool(marks)


def _numbers(values: Values, node: Node, sizes: Any) -> list[int]:
    return [int(values.number(size, sizes)) for size in shape(node)]
