"""Keys of an index, from which attention chooses the keys that it sees: ``cat(past, new)`` -> ``fetch_index``.

Sparse attention (DeepSeek 3.2, GLM's DSA) scores all keys of an index, and sees those with the highest scores. The mask
that says which is computed from values; beside it there is the one that follows from the number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.lower import cache_ops
from mlxport.graph.rewrite.caches.cached_step import CachedStep, CacheKind, NotCached
from mlxport.graph.rewrite.caches.keys_values import counts_all
from mlxport.graph.rewrite.caches.visible_keys import is_lowest
from mlxport.graph.rewrite.graph_queries import Editor, kind, ndim, shape

__all__ = ["chosen_keys", "fetch_index_keys", "find_index_keys"]


def find_index_keys(step: CachedStep) -> dict[int, Node]:
    """The op that puts the new keys of an index after the old, by the number of the layer.

    Raises:
        NotCached: They are used in another way.
    """
    found: dict[int, Node] = {}
    for number in sorted(step.layers):
        past = step.index(number)
        if past is None:
            continue
        users = [user for user in past.users if kind(user) != "sym_size"]
        if len(users) != 1 or not _is_joined(past, users[0]):
            used = ", ".join(sorted({kind(user) or user.op for user in users}))
            raise NotCached(f"layer {number}: what is remembered as {past.name} is used by {used or 'nothing'}")
        if step.states(number) or step.source is not None:
            raise NotCached(f"layer {number} keeps states beside the keys of an index")
        found[number] = users[0]
    return found


def _is_joined(past: Node, user: Node) -> bool:
    """Whether ``user`` puts new keys [batch, length, width] after those before, along the tokens."""
    if kind(user) != "cat" or len(user.args[0]) != 2 or user.args[0][0] is not past:
        return False
    return len(user.args) > 1 and user.args[1] in (1, -2)


def fetch_index_keys(step: CachedStep, joined: Mapping[int, Node]) -> None:
    """Write the updates of all layers that have an index."""
    for number, node in joined.items():
        edit = Editor(step.captured, node)
        made = edit.call(cache_ops.fetch_index, step.index_cache(number), node.args[0][1], val=node.meta["val"])
        made.meta["index_of"] = number
        edit.replace(made)
        step.kinds[number] = replace(step.kinds.get(number, CacheKind()), indexes=True)


def chosen_keys(step: CachedStep, mask: Any) -> tuple[Node | None, Any]:
    """The places [batch, length, chosen] of the keys that a mask shows, and the mask that hides others beside.

    None, and the mask itself, where none are chosen.
    """
    parts: list[tuple[Any, Any, bool]] = []
    if kind(mask) in ("bitwise_and", "logical_and"):
        parts = [(*mask.args, True), (*mask.args[::-1], True)]
    elif kind(mask) == "masked_fill" and is_lowest(step, mask.args[2]):
        parts = [(mask.args[1], mask.args[0], False)]
    for chosen, other, shown in parts:
        step.values.learn(other)
        places = _places(step, chosen, shown)
        if places is not None and other in step.values.static:
            return places, other
    return None, mask


_FULL = {"ones": True, "new_ones": True, "zeros": False, "new_zeros": False}


def _places(step: CachedStep, chosen: Node, shown: bool) -> Node | None:
    """The places at which ``chosen`` [batch, 1, length, total] is ``shown``, where it says otherwise of all others."""
    axes = []
    node = chosen
    while kind(node) in ("bitwise_not", "logical_not", "unsqueeze"):
        if kind(node) == "unsqueeze":
            axes.append(node.args[1])
        else:
            shown = not shown
        node = node.args[0]  # type: ignore[assignment]
    if kind(node) != "scatter" or len(node.args) != 4 or axes not in ([1], [-3]):
        return None
    full, axis, places, value = node.args
    if ndim(node) != 3 or axis not in (-1, 2) or not counts_all(step, shape(node)[2]):
        return None
    if value is not shown or _FULL.get(kind(full)) is not (not shown) or full.meta["val"].dtype is not torch.bool:
        return None
    while kind(places) == "_to_copy":
        places = places.args[0]
    return places
