"""Make layers of ops on a module's own parameters, each in one place, whoever shares its weights."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.layer_specs import LayerSpec, Match, layer, layer_itself
from mlxport.graph.lower.traits import View, filling, traits_of
from mlxport.graph.rewrite.recognise import recognise

__all__ = ["find_layers"]


def find_layers(captured: Captured) -> dict[str, LayerSpec]:
    """Turn every op that works on a module's own parameters into a layer node; path to layer, with those there are.

    An op stays what it is where its weights have another use that the layer's form of them would not serve. A linear
    layer that shares its weight with an embedding becomes ``embedding.as_linear``.
    """
    matches = recognise(captured)
    by_name = {name: node for node, name in captured.weights.items()}
    below = _weights_below(captured)
    given = [node.meta["layer"] for node in captured.graph.nodes if node.target is layer_itself]
    layers: dict[str, LayerSpec] = {spec.path: spec for spec in given}
    replaced: dict[Node, Node] = {}
    for found in _clusters(matches):
        home = _home(found)
        calls = [_called(match, home) for match in found]
        if any(call is None for call in calls) or _used_elsewhere(found, by_name):
            continue
        if below.get(home.path, set()) - {source for weight in home.weights.values() for source in weight.sources}:
            continue  # it has more weights than the layer: it is a class of its own
        if any(name != "parametrizations" for name, _ in _children(captured, home.path)):
            continue
        layers[home.path] = home
        for match, call in zip(found, calls, strict=True):
            assert call is not None
            inputs = tuple(replaced.get(item, item) for item in match.inputs)
            if home.result:
                replaced.update(_rewrite_recurrent(captured, match, call, inputs))
            else:
                replaced.update(_rewrite(captured, match, call, inputs))
    return layers


def _clusters(matches: list[Match]) -> list[list[Match]]:
    """Matches that share a weight, together."""
    found: list[tuple[set[str], list[Match]]] = []
    by_source: dict[str, int] = {}
    for match in matches:
        sources = {source for weight in match.spec.weights.values() for source in weight.sources} | {match.spec.path}
        old = sorted({by_source[source] for source in sources if source in by_source})
        group = found[old[0]] if old else (set(), [])
        if not old:
            found.append(group)
        index = old[0] if old else len(found) - 1
        for other in old[1:]:
            group[0].update(found[other][0])
            group[1].extend(found[other][1])
            found[other] = (set(), [])
        group[0].update(sources)
        group[1].append(match)
        by_source.update(dict.fromkeys(group[0], index))
    return [group for _, group in found if group]


def _home(found: list[Match]) -> LayerSpec:
    """The layer that holds the weights which all matches share: an embedding, or where they have their first name."""
    embeddings = [match.spec for match in found if match.spec.constructor == "nn.Embedding"]
    specs = embeddings or [match.spec for match in found]
    canonical = [spec for spec in specs if spec.weights and _first_source(spec).rpartition(".")[0] == spec.path]
    return (canonical or specs)[0]


def _first_source(spec: LayerSpec) -> str:
    return next(iter(spec.weights.values())).sources[0]


def _called(match: Match, home: LayerSpec) -> LayerSpec | None:
    """How the home layer does what ``match`` does, or None."""
    spec = match.spec
    if replace(spec, path=home.path) == home:
        return home
    tied = spec.constructor == "nn.Linear" and home.constructor == "nn.Embedding"
    return replace(home, method="as_linear") if tied and spec.weights["weight"] == home.weights["weight"] else None


def _rewrite(captured: Captured, match: Match, call: LayerSpec, inputs: tuple[Any, ...]) -> dict[Node, Node]:
    """Make a layer node of the op; gives the nodes that went with their replacements."""
    graph, node = captured.graph, match.node
    replaced: dict[Node, Node] = {}
    if isinstance(node.meta["val"], tuple | list):  # the statistics are not used
        node.meta["val"] = node.meta["val"][0]
        for user in list(node.users):
            replaced[user] = node
            user.replace_all_uses_with(node)
            graph.erase_node(user)
    bias = node.args[2] if call.method and len(node.args) > 2 else node.kwargs.get("bias") if call.method else None
    node.target = layer
    node.args, node.kwargs = inputs, {}
    node.meta["layer"] = call
    if bias is not None:
        with graph.inserting_after(node):
            total = graph.call_function(torch.ops.aten.add.Tensor, (node, bias))
        total.meta = {key: value for key, value in node.meta.items() if key != "layer"}
        node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
        replaced[node] = total
    return replaced


def _rewrite_recurrent(captured: Captured, match: Match, spec: LayerSpec, inputs: tuple[Any, ...]) -> dict[Node, Node]:
    """Torch's (output, last states …) from what ``nn.LSTM`` and ``nn.GRU`` give: the states at every step."""
    graph, node = captured.graph, match.node
    kind, _, batch_first = match.spec.result.partition("_")
    x, *states = inputs
    aten = torch.ops.aten

    def call(target: Any, *args: Any, val: Any) -> Node:
        made = graph.call_function(target, args)
        made.meta = {**node.meta, "val": val}
        return made

    def select(source: Node, axis: int, index: int) -> Node:
        return call(aten.select.int, source, axis, index, val=source.meta["val"].select(axis, index))

    with graph.inserting_before(node):
        if not batch_first:
            x = call(aten.transpose.int, x, 0, 1, val=x.meta["val"].transpose(0, 1))
        given = [] if all(map(_is_zero, states)) else [select(state, 0, 0) for state in states]
        values = node.meta["val"]
        sequence = values[0] if batch_first else values[0].transpose(0, 1)
        made = call(layer, x, *given, val=sequence if kind == "gru" else (sequence, sequence))
        made.meta["layer"] = spec
        parts = [made] if kind == "gru" else [call(operator.getitem, made, i, val=sequence) for i in (0, 1)]
        results = [parts[0] if batch_first else call(aten.transpose.int, parts[0], 0, 1, val=values[0])]
        for part, value in zip(parts, values[1:], strict=True):
            results.append(call(aten.unsqueeze.default, select(part, 1, -1), 0, val=value))
    replaced = {user: results[user.args[1]] for user in node.users}
    for user, result in replaced.items():
        user.replace_all_uses_with(result)
        graph.erase_node(user)
    graph.erase_node(node)
    return replaced


def _is_zero(node: Any) -> bool:
    return filling(node) == 0


def _used_elsewhere(found: list[Match], by_name: dict[str, Node]) -> bool:
    """Whether a weight has a use outside of the layer, which its stored (or quantized) form would not serve."""
    nodes = {match.node for match in found}
    sources = {source for match in found for weight in match.spec.weights.values() for source in weight.sources}
    matched = {item for match in found for item in match.node.all_input_nodes}
    turned = {  # a layer may store its weight turned
        item for item in matched if traits_of(item).view is View.REORDERED and nodes.issuperset(item.users)
    }
    nodes, matched = nodes | turned, matched | {item.args[0] for item in turned}
    return any(
        user not in nodes
        for source in sources
        if source in by_name and by_name[source] in matched and not _plain_bias(by_name[source])
        for user in by_name[source].users
    )


def _children(captured: Captured, path: str) -> list[tuple[str, torch.nn.Module]]:
    module = captured.modules.get(path)
    return list(module.named_children()) if module is not None else []


def _weights_below(captured: Captured) -> dict[str, set[str]]:
    """Path of a module to the weights in use in it and below it, under all their names."""
    below: dict[str, set[str]] = {}
    for node, full in captured.weights.items():
        for name in captured.aliases.get(full, (full,)) if node.users else ():
            while "." in name:
                name = name.rpartition(".")[0]
                below.setdefault(name, set()).add(full)
    return below


def _plain_bias(node: Node) -> bool:
    """Biases are kept as they are in every layer and format."""
    return node.meta["val"].ndim == 1
