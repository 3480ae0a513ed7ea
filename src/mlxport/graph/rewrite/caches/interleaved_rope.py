"""Channels put in halves before a rotary embedding -> ``mx.fast.rope(traditional=True)``: pairs turned as they lie.

The result then has its channels in another order, that of the original's weights. Where queries and keys both have it
and nothing but their product is taken, the scores are the same: so DeepSeek's models are written in mlx-lm.
"""

from __future__ import annotations

import heapq
import sys
from typing import Any

from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower import cache_ops
from mlxport.graph.lower.fused_ops import rotary
from mlxport.graph.lower.traits import View, traits_of
from mlxport.graph.rewrite.graph_queries import kind, ndim, permutation, same_size, shape

__all__ = ["turn_pairs"]

# Where attention has the queries and keys whose products are scores.
_ATTENTIONS = {cache_ops.attend: (0, 1), cache_ops.latent_attention: (1, 3)}
_Channels = tuple[int, int]  # the first of those in another order, and how many they are


class _Seen(Exception):
    """The order of the channels shows."""


def turn_pairs(captured: Captured) -> None:
    """Turn pairs in all rotary embeddings, if each attention has queries and keys in one order."""
    found = {node: source for node in captured.graph.nodes if (source := _interleaved(node)) is not None}
    if not found or not _unseen(found):
        return
    for node, source in found.items():
        node.args = (source, node.args[1], True, *node.args[3:])
    captured.graph.eliminate_dead_code()


def _interleaved(node: Node) -> Node | None:
    """What a rotary embedding is of, where that takes all even channels before all odd ones."""
    if node.target is not rotary or node.args[2] or kind(node.args[0]) != "cat":
        return None
    joined: Any = node.args[0]
    parts, axis = joined.args[0], joined.args[1] if len(joined.args) > 1 else 0
    if len(parts) != 2 or axis % ndim(joined) != ndim(joined) - 1 or node.args[1] != shape(joined)[-1]:
        return None
    starts = [_every_second(part) for part in parts]
    source = parts[0].args[0]
    return source if starts == [0, 1] and parts[1].args[0] is source and shape(source)[-1] == node.args[1] else None


def _every_second(part: Node) -> int | None:
    """The first channel of a slice that takes every second one up to the last."""
    if kind(part) != "slice":
        return None
    given: tuple[Any, ...] = tuple(part.args[1:])
    axis, start, end, step = given + (0, None, None, 1)[len(given) :]
    width = shape(part.args[0])[-1]  # type: ignore[arg-type]
    whole = axis % ndim(part) == ndim(part) - 1 and (end is None or end in (width, sys.maxsize))
    return (start or 0) if whole and step == 2 else None


def _unseen(found: dict[Node, Node]) -> bool:
    """Whether all that follows from the embeddings is scores of queries and keys in one order."""
    channels: dict[Node, _Channels] = {node: (0, shape(node)[-1]) for node in found}
    pending = sorted({user for node in found for user in node.users})
    seen = set(pending)
    try:
        while pending:
            node = heapq.heappop(pending)
            if kind(node) == "sym_size" or node.target in _ATTENTIONS and _alike(node, channels):
                continue
            if _is_other(node, channels):
                continue
            channels[node] = _carried(node, channels)
            for user in node.users:
                if user not in seen:
                    seen.add(user)
                    heapq.heappush(pending, user)
    except _Seen:
        return False
    return True


def _alike(node: Node, channels: dict[Node, _Channels]) -> bool:
    """Whether an attention has queries and keys whose channels lie in one order, and nothing else in it.

    Raises:
        _Seen: It has not.
    """
    places = _ATTENTIONS[node.target]  # type: ignore[index]
    query, key = (node.args[place] for place in places)
    others = [item for place, item in enumerate(node.args) if place not in places]
    if channels.get(query) != channels.get(key) or any(item in channels for item in others if isinstance(item, Node)):  # type: ignore[arg-type]
        raise _Seen
    return True


def _is_other(node: Node, channels: dict[Node, _Channels]) -> bool:
    """Whether a cache gives this beside what is in another order: values that are not turned, say."""
    source: Any = node.args[0] if node.args else None
    if kind(node) != "getitem" or source.target is not cache_ops.update_and_fetch:
        return False
    return source.args[1 + node.args[1]] not in channels  # type: ignore[operator]


def _carried(node: Node, channels: dict[Node, _Channels]) -> _Channels:
    """Where the channels lie in what is made of them.

    Raises:
        _Seen: Not as they were, one beside the other in the last axis.
    """
    traits, source = traits_of(node), node.args[0] if node.args else None
    if kind(node) == "cat":
        return _joined(node, channels)
    if node.target is cache_ops.update_and_fetch:
        return (0, 0)  # of the pair: its items say which they are
    if kind(node) == "getitem" and getattr(source, "target", None) is cache_ops.update_and_fetch:
        return channels[source.args[1 + node.args[1]]]  # type: ignore[union-attr,operator,index]
    if ndim(node) < 1 or [item for item in node.all_input_nodes if item in channels] != [source]:
        raise _Seen
    kept = same_size(shape(node)[-1], shape(source)[-1])  # type: ignore[arg-type]
    first = traits.view is View.REORDERED and permutation(node)[-1] == ndim(node) - 1
    if kept and (first or traits.copy or traits.shaped or (kind(node) == "mul" and _by_number(node))):
        return channels[source]  # type: ignore[index]
    raise _Seen


def _by_number(node: Node) -> bool:
    factor = node.args[1]
    return not isinstance(factor, Node) or ndim(factor) == 0 or shape(factor) == (1,) * ndim(factor)


def _joined(node: Node, channels: dict[Node, _Channels]) -> _Channels:
    parts: Any = node.args[0]
    axis: Any = node.args[1] if len(node.args) > 1 else 0
    ordered = [part for part in parts if part in channels]
    if axis % ndim(node) != ndim(node) - 1 or len(ordered) != 1:
        raise _Seen
    before = [shape(part)[-1] for part in parts[: parts.index(ordered[0])]]
    if not all(isinstance(size, int) for size in before):
        raise _Seen
    first, count = channels[ordered[0]]
    return sum(before) + first, count
