"""Fold at conversion what depends on weights alone: weight_norm, spectral_norm, constant expressions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

import torch
from torch.fx import Graph, Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.origin import module_path
from mlxport.graph.lower.layer_specs import Fold
from mlxport.graph.lower.traits import View, traits_of

__all__ = ["fold_constants"]


def fold_constants(captured: Captured) -> dict[str, Fold]:
    """Replace constant expressions by weights of their own; name to expression."""
    constant: set[Node] = set()
    weighted: set[Node] = set()
    written = {name for name, _ in captured.mutations}
    asked = _asked(captured.graph)
    for node in captured.graph.nodes:
        if node in captured.weights:
            name = captured.weights[node]
            if name in written or not (node in asked or _foldable(captured, name)):
                continue
            constant.add(node)
            weighted.add(node)
        elif node.op == "call_function" and _pure(node) and all(item in constant for item in node.all_input_nodes):
            constant.add(node)
            if any(item in weighted for item in node.all_input_nodes):
                weighted.add(node)
    folds: dict[str, Fold] = {}
    places: list[tuple[Node, str]] = []
    for node in captured.graph.nodes:
        if node not in constant or node.op != "call_function" or all(user in constant for user in node.users):
            continue
        if _worth(node, weighted):
            fold = _fold(captured, node)
            places.append((node, _name(captured, node, fold.sources, folds)))
            folds[places[-1][1]] = fold
    for node, name in places:  # after all are found: an expression that has another in it starts at the weights, too
        with captured.graph.inserting_before(_first(captured.graph)):
            made = captured.graph.placeholder("folded")
        made.meta = {"val": node.meta["val"]}
        node.replace_all_uses_with(made)
        captured.weights[made] = name
    captured.graph.eliminate_dead_code()
    alive = set(captured.graph.nodes)
    captured.weights = {node: name for node, name in captured.weights.items() if node in alive}
    return folds


def _asked(graph: Graph) -> set[Node]:
    """Weights of expressions that are to be folded, parameters included: they have the name of the result."""
    named = [node for node in graph.nodes if "fold_name" in node.meta]
    return {
        item for node in named for link in _chain(node) for item in link.all_input_nodes if item.op == "placeholder"
    }


def _foldable(captured: Captured, name: str) -> bool:
    """Whether the port may have something computed from this weight in its place: a parameter is kept as it is.

    Except for what weight_norm and spectral_norm make of one parameter, in either spelling.
    """
    if name not in captured.trainable or "parametrizations." in name:
        return True
    match = re.fullmatch(r"(.*)_(g|v|orig)", name)
    parts = [f"{match[1]}_g", f"{match[1]}_v"] if match and match[2] != "orig" else [name]
    return match is not None and all(part in captured.state for part in parts)


def _first(graph: Graph) -> Node:
    return next(iter(graph.nodes))


def _pure(node: Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor | tuple | list):
        return False
    values = [value] if isinstance(value, torch.Tensor) else list(value)
    if any(
        not isinstance(item, torch.Tensor) or not all(isinstance(size, int) for size in item.shape) for item in values
    ):
        return False
    return not traits_of(node).random


def _chain(node: Node) -> list[Node]:
    """The op nodes that ``node`` is computed by, in order."""
    found: dict[Node, None] = {}

    def visit(item: Node) -> None:
        if item.op == "call_function" and item not in found:
            for inner in item.all_input_nodes:
                visit(inner)
            found[item] = None

    visit(node)
    return list(found)


def _worth(node: Node, weighted: set[Node]) -> bool:
    """Whether to keep the value as a weight: what no weight is part of is computed where the original does."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor) or node not in weighted:
        return False
    chain = _chain(node)
    sources = [item for link in chain for item in link.all_input_nodes if item.op == "placeholder"]
    size = sum(prod(item.meta["val"].shape) for item in set(sources))
    return any(not _arranges(item) for item in chain) and prod(value.shape) <= max(2 * size, 4096)


def _arranges(node: Node) -> bool:
    """Whether the numbers stay what they are: views and casts, which are done where they are used."""
    kind = traits_of(node)
    return kind.cast or kind.view not in (None, View.REINTERPRETED)


def _fold(captured: Captured, node: Node) -> Fold:
    graph = Graph()
    copies: dict[Node, Node] = {}
    sources: list[str] = []
    chain = _chain(node)
    for link in chain:
        for item in link.all_input_nodes:
            if item in captured.weights and item not in copies:
                copies[item] = graph.placeholder(f"w{len(sources)}")
                copies[item].meta = {"val": item.meta["val"]}
                sources.append(captured.weights[item])
    for link in chain:
        copies[link] = graph.node_copy(link, lambda item: copies[item])
        copies[link].meta = dict(link.meta)
    graph.output((copies[node],))
    return Fold(tuple(sources), graph)


def _sole(captured: Captured, node: Node) -> str | None:
    """The name of the one tensor that the value is computed from, if nothing else uses it and it has the same shape."""
    chain = set(_chain(node))
    sources = {item for link in chain for item in link.all_input_nodes if item.op == "placeholder"}
    if len(sources) != 1:
        return None
    (source,) = sources
    alone = chain.issuperset(source.users) and all(chain.issuperset(link.users) for link in chain - {node})
    return captured.weights[source] if alone and source.meta["val"].shape == node.meta["val"].shape else None


def _name(captured: Captured, node: Node, sources: Sequence[str], taken: object) -> str:
    """Where the folded value lives: ``conv.weight`` for both spellings of a parametrization, else beside its module."""
    if "fold_name" in node.meta:
        return str(node.meta["fold_name"])
    names = set(captured.weights.values()) | set(taken)  # type: ignore[call-overload]
    for source in sources:
        if match := re.fullmatch(r"(.*?)\.?parametrizations\.(\w+)\..*", source):
            candidate = f"{match[1]}.{match[2]}" if match[1] else match[2]
            if candidate not in names:
                return candidate
        if match := re.fullmatch(r"(.*)_(g|v|orig)", source):
            if match[1] not in names:
                return match[1]
    if (own := _sole(captured, node)) is not None and own not in taken:  # type: ignore[operator]
        return own  # ``1 + weight`` takes the place of ``weight``
    path = re.sub(r"\.?parametrizations\..*", "", module_path(node))
    base = re.sub(r"_\d+$", "", node.name).strip("_")
    candidate, number = base, 1
    while (f"{path}.{candidate}" if path else candidate) in names:
        number += 1
        candidate = f"{base}_{number}"
    return f"{path}.{candidate}" if path else candidate
