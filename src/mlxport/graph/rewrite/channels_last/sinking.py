"""Channels-last: run convolutions and what lies between them with the channels in the last axis, as MLX does.

Each op that wants its channels last gets a permute before and after it; then permutes sink through what does not care
about the order of axes until they meet their inverse or an op that cares.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Graph, Node

from mlxport.graph.lower.layer_specs import layer
from mlxport.graph.lower.registry import CHANNELS_LAST, ChannelsLast, bind
from mlxport.graph.rewrite.channels_last.permutes import (
    PERMUTE,
    axes_of,
    give_back,
    inverse_of,
    is_permuted,
    permute,
    to_last,
)
from mlxport.graph.rewrite.channels_last.sinking_rules import rule_for

__all__ = ["channels_last", "count_permutes"]


def channels_last(graph: Graph) -> None:
    """Rewrite ``graph``; afterwards ``count_permutes`` says what is left."""
    for node in list(graph.nodes):
        _surround(graph, node)
    changed = True
    while changed:
        changed = False
        for node in list(graph.nodes):
            if node.op == "call_function" and _sink(graph, node):
                changed = True
    graph.eliminate_dead_code()
    _rehome(graph)


def _rehome(graph: Graph) -> None:
    """Permutes belong to the module that all their users are in: one that a module's caller needs is the caller's."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in reversed(list(graph.nodes)):
        if node.target is not PERMUTE:
            continue
        stacks = [list((user.meta.get("nn_module_stack") or {}).items()) for user in node.users]
        common = []
        for level in zip(*stacks, strict=False):
            if any(entry != level[0] for entry in level):
                break
            common.append(level[0])
        node.meta["nn_module_stack"] = dict(common)
        first = min(node.users, key=lambda user: order[user])
        first.prepend(node)
        order[node] = order[first]


def count_permutes(graph: Graph) -> int:
    """Permutes of activations in the graph."""
    return sum(node.target is PERMUTE for node in graph.nodes)


def _surround(graph: Graph, node: Node) -> None:
    if node.target is layer and node.meta["layer"].channels_last:
        names, axis_of = None, (lambda ndim: 1)
    elif str(node.target) in CHANNELS_LAST:
        entry = CHANNELS_LAST[str(node.target)]
        if entry.either:
            return
        names, axis_of = entry.inputs, entry.channel_axis
        bound = bind(node.target, node.args, dict(node.kwargs))
        if any(isinstance(bound[name], Node) and bound[name].meta["val"].ndim < 3 for name in names):
            return
    else:
        return
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor) and not isinstance(value, tuple | list):
        return
    node.meta["channels_last"] = True

    def moved(source: Node) -> Node:
        ndim = source.meta["val"].ndim
        with graph.inserting_before(node):
            return permute(graph, source, to_last(ndim, axis_of(ndim)), node.meta)

    if names is None:
        node.args = (moved(node.args[0]), *node.args[1:])
    else:
        arguments = [argument.name for argument in node.target._schema.arguments]
        args = list(node.args)
        for name in names:
            index = arguments.index(name)
            if index < len(args) and isinstance(args[index], Node):
                args[index] = moved(args[index])
        node.args = tuple(args)
    if isinstance(value, torch.Tensor):
        _permute_result(graph, node, axis_of(value.ndim))
    else:
        values = list(value)
        for user in list(node.users):
            if user.target is operator.getitem:
                _permute_result(graph, user, axis_of(user.meta["val"].ndim))
        node.meta["val"] = tuple(_last_value(item, axis_of(item.ndim)) for item in values)


def _last_value(value: torch.Tensor, axis: int) -> torch.Tensor:
    return value.permute(to_last(value.ndim, axis))


def _permute_result(graph: Graph, node: Node, axis: int) -> None:
    """Say that ``node`` gives its result channels-last, and give its users the original order back."""
    axes = to_last(node.meta["val"].ndim, axis)
    node.meta["val"] = node.meta["val"].permute(axes)
    users = list(node.users)
    with graph.inserting_after(node):
        back = permute(graph, node, inverse_of(axes), node.meta)
    for user in users:
        user.replace_input_with(node, back)


def _sink(graph: Graph, node: Node) -> bool:
    """Move permutes from before ``node`` to after it, where it can do without them."""
    if node.target is PERMUTE:
        return _merge(graph, node)
    entry = CHANNELS_LAST.get(str(node.target))
    if entry is not None and entry.either and not node.meta.get("channels_last"):
        return _either(graph, node, entry)
    if node.meta.get("channels_last") or not any(is_permuted(item) for item in node.all_input_nodes):
        return False
    rule = rule_for(node)
    return rule is not None and rule(graph, node)


def _either(graph: Graph, node: Node, entry: ChannelsLast) -> bool:
    """An op that takes both layouts: channels-last where its input comes so."""
    source = node.all_input_nodes[0]
    value = node.meta["val"]
    if not is_permuted(source) or not isinstance(value, torch.Tensor):
        return False
    ndim = source.meta["val"].ndim
    axes = axes_of(source)
    if axes != inverse_of(to_last(ndim, entry.channel_axis(ndim))) or value.ndim != ndim:
        return False
    node.replace_input_with(source, source.args[0])
    node.meta["channels_last"] = True
    return give_back(graph, node, axes)


def _merge(graph: Graph, node: Node) -> bool:
    source = node.args[0]
    if not is_permuted(source):
        if axes_of(node) == list(range(node.meta["val"].ndim)):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            return True
        return False
    with graph.inserting_before(node):
        merged = permute(graph, source, axes_of(node), node.meta)
    node.replace_all_uses_with(merged)
    graph.erase_node(node)
    return True
