"""Keys and values that are repeated for groups of query heads, back to what was repeated."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.lower.traits import View, traits_of
from mlxport.graph.rewrite.fuse.values import CannotEvaluate, Values, close
from mlxport.graph.rewrite.graph_queries import Editor, is_float, kind, ndim, same_shape, shape

__all__ = ["absorb_scale", "unrepeat"]

_REPEATS = frozenset({"repeat", "repeat_interleave"})
_PICKS = frozenset({"index", "index_select"})  # which repeat where they take one thing several times


def _moves(node: Node) -> bool:
    """Whether the node has all that its input has, in other places, or several times."""
    kind = traits_of(node)
    return kind.shaped or kind.view in (View.SAME, View.REORDERED) or kind.name in _REPEATS


def unrepeat(edit: Editor, key: Node, value: Node, values: Values) -> tuple[Node, Node]:
    """Keys and values with the heads that they had before each was repeated, or themselves."""
    sources = [_source(node, values) for node in (key, value)]
    if any(found is None for found in sources):
        return key, value
    (before_key, axis_key), (before_value, axis_value) = sources  # type: ignore[misc]
    if shape(before_key)[axis_key] != shape(before_value)[axis_value]:
        return key, value
    made = []
    for node, axis in ((before_key, axis_key), (before_value, axis_value)):
        made.append(node if axis == 1 else edit.permute(node, [0, 2, 1, 3]))
    return made[0], made[1]


def _source(node: Node, values: Values) -> tuple[Node, int] | None:
    """What is repeated along its heads to make ``node`` (batch, heads, length, width), and the axis of its heads."""
    if ndim(node) != 4 or not isinstance(shape(node)[1], int):
        return None
    source: Any = node
    for _ in range(8):
        if not (_moves(source) or kind(source) in _PICKS) or not is_float(source.args[0]):
            break
        source = source.args[0]
        if ndim(source) == 4:
            for axis in (1, 2):
                if _repeats(node, source, axis, values):
                    return source, axis
    return None


def _repeats(node: Node, source: Node, axis: int, values: Values) -> bool:
    heads, fewer = shape(node)[1], shape(source)[axis]
    if not isinstance(fewer, int) or fewer >= heads or heads % fewer or fewer == 0:
        return False
    try:
        sizes = next(iter(values.sizes()))
        x = values.random(source, sizes)
        (got,) = values.run([node], {source: x}, sizes)
    except CannotEvaluate:
        return False
    x = x if axis == 1 else x.transpose(1, 2)
    return close(got, torch.repeat_interleave(x, heads // fewer, 1))


def absorb_scale(node: Node, values: Values) -> tuple[Node, float]:
    """Queries (or keys) without a number that they were multiplied with, and the number."""
    factor, bare = 1.0, node
    moves: list[Node] = []
    source: Any = node
    while isinstance(source, Node):
        if kind(source) in ("mul", "div") and is_float(source) and (not moves or len(source.users) == 1):
            number = values.scalar(source.args[1])
            inner = source.args[0]
            if number is None and kind(source) == "mul":
                number, inner = values.scalar(source.args[0]), source.args[1]
            if number is None or not isinstance(inner, Node) or number <= 0 or not _same_kind(inner, source):
                break
            factor *= number if kind(source) == "mul" else 1 / number
            source = inner
            bare = _moved(inner, moves)
        elif _moves(source) or traits_of(source).cast:
            moves.append(source)
            source = source.args[0]
        else:
            break
    return bare, factor


def _moved(source: Node, moves: list[Node]) -> Node:
    """``source`` through copies of the moves, the last one first: others may use what they give."""
    for move in reversed(moves):
        with move.graph.inserting_before(move):
            made = move.graph.node_copy(move)
        made.args = (source, *move.args[1:])
        source = made
    return source


def _same_kind(a: Node, b: Node) -> bool:
    one, two = a.meta["val"], b.meta["val"]
    return one.dtype == two.dtype and same_shape(one, two)
