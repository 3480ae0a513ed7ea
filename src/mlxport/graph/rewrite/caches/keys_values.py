"""New keys and values put after the old ones: ``cat(past, new)`` -> ``cache.update_and_fetch``."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import sympy
import torch
from torch.fx import Node

from mlxport.graph.lower import cache_ops
from mlxport.graph.lower.data_dependent import add_size
from mlxport.graph.lower.symbolic_sizes import TOTAL
from mlxport.graph.rewrite.caches.cached_step import CachedStep, NotCached
from mlxport.graph.rewrite.graph_queries import Editor, kind

__all__ = [
    "common_scope",
    "count_from_keys",
    "counts_all",
    "fetch_keys_and_values",
    "find_keys_and_values",
    "layer_of",
    "measure_keys",
    "number_of_keys",
]


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


def layer_of(fetched: Mapping[int, Node], nodes: Iterable[Node]) -> int | None:
    """The layer whose keys and values ``nodes`` are, or are made of (latents that become keys): the nearest update."""
    layers = {update: number for number, update in fetched.items()}
    seen: set[Node] = set()
    level = list(nodes)
    while level:
        for item in level:
            if item in layers:
                return layers[item]
            if item.target is cache_ops.fetch_index:
                return int(item.meta["index_of"])
        seen.update(level)
        level = list({other for item in level for other in item.all_input_nodes if other not in seen})
    return None


def measure_keys(step: CachedStep, fetched: Mapping[int, Node]) -> None:
    """Let what is made of all keys take their number from them: before the layers it is not known."""
    for node in list(step.captured.graph.nodes):
        if not _follows(step, node):
            continue
        for user in list(node.users):
            layer = layer_of(fetched, [item for item in user.all_input_nodes if item is not node])
            if layer is not None and not isinstance(user.meta.get("val"), torch.SymInt):
                user.replace_input_with(node, _measured(step, fetched[layer], node))


def _follows(step: CachedStep, node: Node) -> bool:
    """Whether ``node`` is the number of all tokens, or a size that is computed from it."""
    size = node.meta.get("val")
    if node.op != "call_function" or not isinstance(size, torch.SymInt) or step.past is None:
        return False
    if counts_all(step, size):
        return True
    return step.past in size.node.expr.free_symbols and any(_follows(step, item) for item in node.all_input_nodes)


def _measured(step: CachedStep, update: Node, size: Node) -> Node:
    """``size`` as a function of the number of keys that the cache gave."""
    if counts_all(step, size.meta["val"]):
        return number_of_keys(step, update, size.meta["val"])
    if not _follows(step, size):
        return size
    parts = {item: _measured(step, update, item) for item in size.all_input_nodes}
    args = torch.fx.node.map_arg(size.args, lambda item: parts[item])
    with step.captured.graph.inserting_after(max(parts.values())):
        made = step.captured.graph.call_function(size.target, args)  # type: ignore[arg-type]
    made.meta = {**parts[next(iter(parts))].meta, "val": size.meta["val"]}
    return made


def count_from_keys(step: CachedStep) -> sympy.Symbol:
    """Say the tokens before as all less the new ones, from here on: a layer knows its keys, and no more.

    Returns:
        The symbol of the number of all tokens.
    """
    environment = step.ids.meta["val"].fake_mode.shape_env
    known = environment.backed_var_to_val
    total = add_size(environment, TOTAL, int(known[step.past] + known[step.length]))
    alike = [symbol for symbol, other in environment.replacements.items() if other == step.past]
    environment.replacements |= dict.fromkeys([step.past, *alike], total - step.length)
    environment._replacements_version_counter += 1  # sizes are kept as they were read under the last number
    environment._update_version_counter()
    return total


def counts_all(step: CachedStep, size: Any) -> bool:
    """Whether ``size`` is the number of all tokens, those before and the new ones."""
    known = isinstance(size, torch.SymInt) and step.past is not None  # without keys nobody counts
    return known and bool(size.node.expr == step.past + step.length)


def number_of_keys(step: CachedStep, update: Node, total: Any) -> Node:
    """The size of the keys that the cache gave, read once in a layer."""
    keys = next(user for user in update.users if user.args[1] == 0)
    for user in keys.users:
        if kind(user) == "sym_size" and user.args[1] == 2:
            return user
    with step.captured.graph.inserting_after(keys):
        size = step.captured.graph.call_function(torch.ops.aten.sym_size.int, (keys, 2))
    size.meta = {**keys.meta, "val": total}
    return size
