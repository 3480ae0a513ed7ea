"""Experts whose one product gives a gate and what it lets through: a matrix for each, as mlx-lm's models have them.

The two are then read in the order in which they are needed, and MLX's CPU backend multiplies many rows of an expert at
once, which it does for matrices that are not too tall.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.origin import module_path, statement
from mlxport.graph.lower import expert_ops
from mlxport.graph.lower.fused_ops import gather_mm
from mlxport.graph.lower.layer_specs import Fold
from mlxport.graph.rewrite.graph_queries import (
    SPLITS,
    Editor,
    kind,
    last_axis_slice,
    ndim,
    shape,
    swaps_matrix,
    used_once,
)
from mlxport.graph.rewrite.made_weights import make_weight

__all__ = ["part_experts"]

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Part:
    """What is taken of a product: channels from ``start`` to ``stop`` by ``step``."""

    node: Node
    start: int
    stop: int
    step: int


def part_experts(captured: Captured, folds: dict[str, Fold]) -> None:
    """Multiply by a matrix for each part where only parts of an experts' product are used."""
    for node in list(captured.graph.nodes):
        if node.target is gather_mm:
            _part(captured, folds, node)
    captured.graph.eliminate_dead_code()


def _part(captured: Captured, folds: dict[str, Fold], product: Node) -> None:
    weight: Any = product.args[1]
    turned = swaps_matrix(weight)
    stored = weight.args[0] if turned else weight
    bias, whole = _biased(product)
    parts = _parts(whole)
    taken = [item for item in (stored, bias) if item is not None]
    if not parts or not all(used_once(captured, item) for item in taken):
        return
    paths = _paths(captured, captured.weights[stored], parts)
    if not paths:
        return
    edit = Editor(captured, whole)
    for part, path in zip(parts, paths, strict=True):
        mine = _cut(captured, folds, f"{path}.weight", stored, 1 if turned else 2, part)
        vector = None if bias is None else _cut(captured, folds, f"{path}.bias", bias, 1, part)
        matrices = edit.permute(mine, [0, 2, 1]) if turned else mine
        given = (product.args[0], matrices, *product.args[2:4], *([] if vector is None else [vector]))
        made = edit.call(gather_mm, *given, val=part.node.meta["val"])
        made.meta["variable"] = path.rpartition(".")[2]
        part.node.replace_all_uses_with(made)


def _biased(product: Node) -> tuple[Any, Node]:
    """The vectors [experts, channels] that are added to a product, if any, and the sum."""
    if len(product.args) > 4 and product.args[4] is not None:
        return product.args[4], product
    users = list(product.users)
    if len(users) == 1 and kind(users[0]) == "add" and len(users[0].args) == 2 and not users[0].kwargs:
        (other,) = [item for item in users[0].args if item is not product] or [None]
        if isinstance(other, Node) and other.target is expert_ops.bias_of_experts and other.args[1] is product.args[2]:
            return other.args[0], users[0]
    return None, product


def _parts(product: Node) -> list[_Part]:
    """What is taken of the channels, if that is all that is done with them and none is taken twice."""
    size = shape(product)[-1]
    users = list(product.users)
    if len(users) == 1 and kind(users[0]) in SPLITS:
        parts = _of_split(users[0], product)
    else:
        parts = [part for user in users if (part := _of_slice(user, product)) is not None]
        parts = parts if len(parts) == len(users) else []
    channels = [channel for part in parts for channel in range(part.start, part.stop, part.step)]
    disjoint = len(parts) > 1 and len(set(channels)) == len(channels) == size
    return parts if disjoint else []


def _of_split(split: Node, product: Node) -> list[_Part]:
    axis: Any = split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)
    if axis % ndim(product) != ndim(product) - 1 or any(kind(user) != "getitem" for user in split.users):
        return []
    ends = [0]
    for value in split.meta["val"]:
        ends.append(ends[-1] + value.shape[-1])
    return [_Part(user, ends[user.args[1]], ends[user.args[1] + 1], 1) for user in sorted(split.users)]  # type: ignore


def _of_slice(node: Node, product: Node) -> _Part | None:
    bounds = last_axis_slice(node, product)
    return None if bounds is None else _Part(node, *bounds)


def _paths(captured: Captured, name: str, parts: list[_Part]) -> list[str]:
    """Where the layers of the parts lie; nothing where a name is taken."""
    owner, _, own = name.removesuffix(".weight").rpartition(".")
    paths = [f"{owner}.{part}" if owner else part for part in _names(captured, own, parts)]
    taken = {*captured.modules, *captured.state, *captured.weights.values()}
    new = {f"{path}.{part}" for path in paths for part in ("weight", "bias")}
    known = all(f"{path}.weight" in captured.weights.values() for path in paths)
    return paths if known or taken.isdisjoint({*paths, *new}) else []


def _names(captured: Captured, own: str, parts: list[_Part]) -> list[str]:
    """``gate_up_proj`` is ``gate_proj`` and ``up_proj``; else the parts are called as in the original."""
    words = own.split("_")
    if len(words) == len(parts) + 1 and len(set(words)) == len(words):
        return [f"{word}_{words[-1]}" for word in words[:-1]]
    found: list[str] = []
    for place, part in enumerate(parts):
        made = statement(part.node, captured.modules.get(module_path(part.node)))
        names = [] if made is None else list(made.names)
        name = names[place] if len(names) == len(parts) else names[0] if len(names) == 1 else ""
        found.append(f"{own}_{name if name.isidentifier() else place}")
    return found if len(set(found)) == len(found) else [f"{own}_{place}" for place in range(len(parts))]


def _cut(captured: Captured, folds: dict[str, Fold], name: str, weight: Node, axis: int, part: _Part) -> Node:
    """Some channels of a weight."""

    def sliced(graph: Graph, sources: Any) -> Node:
        (source,) = sources
        args = (source, axis, part.start, part.stop, part.step)
        made = graph.call_function(_aten.slice.Tensor, args)
        fake = source.meta["val"]
        with fake.fake_mode:
            made.meta = {"val": _aten.slice.Tensor(fake, *args[1:])}
        return made

    return make_weight(captured, folds, name, {captured.weights[weight]: weight.meta["val"]}, sliced)
