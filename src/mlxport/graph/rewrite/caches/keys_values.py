"""New keys and values put after the old ones: ``cat(past, new)`` -> ``cache.update_and_fetch``."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from torch.fx import Node

from mlxport.graph.lower import cache_ops
from mlxport.graph.rewrite.caches.cached_step import CachedStep, NotCached
from mlxport.graph.rewrite.graph_queries import Editor, kind

__all__ = ["common_scope", "fetch_keys_and_values", "find_keys_and_values"]


def find_keys_and_values(step: CachedStep) -> dict[int, list[Node]]:
    """The ops that put new keys, and new values, after the old, by the number of the layer.

    Raises:
        NotCached: Keys or values are used in another way.
    """
    held = {number: names for number, names in sorted(step.layers.items()) if "keys" in names}
    return {number: [_joined(number, names[role]) for role in ("keys", "values")] for number, names in held.items()}


def fetch_keys_and_values(step: CachedStep, joined: Mapping[int, list[Node]]) -> dict[int, Node]:
    """Write the updates of all layers that keep keys and values; gives them by the number of the layer."""
    return {number: _updated(step, number, nodes) for number, nodes in joined.items()}


def _joined(number: int, past: Node) -> Node:
    """The one op that puts new keys, or values, after the old."""
    found = [user for user in past.users if kind(user) == "cat" and user.args[0][0] is past and len(user.args[0]) == 2]
    others = [user for user in past.users if user not in found and kind(user) != "sym_size"]
    if len(found) != 1 or others:
        used = ", ".join(sorted({kind(user) or user.op for user in past.users}))
        raise NotCached(f"layer {number}: what is remembered as {past.name} is used by {used or 'nothing'}")
    return found[0]


def common_scope(nodes: list[Node]) -> dict[str, object]:
    """The modules in whose call all ``nodes`` lie: those of one layer lie in a module of their own."""
    stacks = [list((node.meta.get("nn_module_stack") or {}).items()) for node in nodes]
    common = []
    for frames in zip(*stacks, strict=False):
        if any(frame[0] != frames[0][0] for frame in frames):
            break
        common.append(frames[0])
    listed = next((index for index, (_, (path, _)) in enumerate(common) if path.rpartition(".")[2].isdigit()), None)
    return dict(common[:listed])


def _updated(step: CachedStep, number: int, joined: list[Node]) -> Node:
    edit = Editor(step.captured, max(joined))
    values = tuple(node.meta["val"] for node in joined)
    made = edit.call(cache_ops.update_and_fetch, step.cache(number), *(node.args[0][1] for node in joined), val=values)
    for index, node in enumerate(joined):
        node.replace_all_uses_with(edit.call(operator.getitem, made, index, val=values[index]))
    for node in sorted(joined, reverse=True):
        step.captured.graph.erase_node(node)
    return made
