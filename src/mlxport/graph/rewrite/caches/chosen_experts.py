"""Routers as mlx-lm's models have them: the largest scores are not sorted where their order does not matter."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.origin import module_path, statement
from mlxport.graph.lower import expert_ops
from mlxport.graph.lower.fused_ops import gather_mm
from mlxport.graph.rewrite.caches.free_order import is_free
from mlxport.graph.rewrite.graph_queries import Editor, is_float, kind, ndim, shape

__all__ = ["choose_experts"]

_aten = torch.ops.aten
_PLACES = frozenset({"gather", "index", "scatter", "scatter_add"})
_EXPERTS = (gather_mm, expert_ops.rows_by_expert, expert_ops.rows_of_tokens)


def choose_experts(captured: Captured) -> None:
    """Write ``argpartition`` for a ``topk`` whose order is free, and softmax of the chosen for shares of a softmax.

    Other shares of the chosen are computed by one function.
    """
    for node in list(captured.graph.nodes):
        if kind(node) == "topk" and _of_last_axis(node) and is_free(node):
            _partition(captured, node)
    captured.graph.eliminate_dead_code()
    for node in list(captured.graph.nodes):
        if kind(node) == "div":
            _softmax_of_chosen(captured, node)
    captured.graph.eliminate_dead_code()
    for node in list(captured.graph.nodes):
        if kind(node) == "div":
            _shares_of_chosen(captured, node)
    captured.graph.eliminate_dead_code()


def _of_last_axis(node: Node) -> bool:
    """Whether it gives the largest of the last axis."""
    names = ("self", "k", "dim", "largest", "sorted")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    last = ndim(node.args[0]) > 0 and given.get("dim", -1) % ndim(node.args[0]) == ndim(node.args[0]) - 1
    taken = all(kind(user) == "getitem" for user in node.users)
    return last and taken and given.get("largest", True) and isinstance(given["k"], int) and is_float(node.args[0])


def _partition(captured: Captured, node: Node) -> None:
    scores, k = node.args[:2]
    values, places = ([user for user in node.users if user.args[1] == index] for index in (0, 1))
    values, places = ([user for user in found if user.users] for found in (values, places))
    edit, fakes = Editor(captured, node), node.meta["val"]
    if not places:
        largest = edit.call(expert_ops.largest, scores, k, val=fakes[0])
        for user in values:
            user.replace_all_uses_with(largest)
        return
    as_places = all(_takes_places(user, place) for place in places for user in place.users)
    with fakes[1].fake_mode:
        fake = fakes[1].to(torch.uint32) if as_places else fakes[1]
    chosen = edit.call(expert_ops.chosen, *_favoured(node, scores, k), val=fake)
    names = _names(captured, node)
    chosen.meta["variable"] = names[1]
    for place in places:
        place.replace_all_uses_with(chosen)
    if values:
        taken = edit.call(_aten.gather.default, scores, -1, chosen, val=fakes[0])
        taken.meta["variable"] = names[0]
        for user in values:
            user.replace_all_uses_with(taken)


def _favoured(node: Node, scores: Any, k: Any) -> tuple[Any, ...]:
    """The arguments of a choice, with the vector that its scores are favoured by where nothing else is made of both."""
    if kind(scores) == "add" and not scores.kwargs and set(scores.users) == {node} and len(scores.args) == 2:
        x, bias = scores.args
        if ndim(bias) == 1 and ndim(x) > 1 and is_float(bias):
            return x, k, bias
    return scores, k


def _takes_places(user: Node, place: Node) -> bool:
    """Whether MLX takes the places as ``argpartition`` gives them, without a sign."""
    return user.args[0] is not place and (kind(user) in _PLACES or user.target in _EXPERTS)


def _names(captured: Captured, node: Node) -> tuple[str, str]:
    """What the original calls values and places."""
    made = statement(node, captured.modules.get(module_path(node)))
    named = made is not None and len(made.names) == 2 and all(name.isidentifier() for name in made.names)
    return (made.names[0], made.names[1]) if made is not None and named else ("chosen", "indices")


def _softmax_of_chosen(captured: Captured, node: Node) -> None:
    """Shares of a softmax, divided by their sum, are the softmax of the chosen scores."""
    shares, total = node.args[:2]
    if kind(shares) != "gather" or kind(total) != "sum" or total.args[0] is not shares or len(node.args) > 2:  # type: ignore[union-attr]
        return
    if set(shares.users) != {node, total} or len(total.users) != 1 or not _kept_sum(total):  # type: ignore[union-attr]
        return
    probabilities, dim, chosen = shares.args[:3]  # type: ignore[union-attr]
    if kind(probabilities) not in ("_softmax", "softmax") or not _last(probabilities.args[1], probabilities):
        return
    if chosen.target is not expert_ops.chosen or chosen.args[0] is not probabilities or not _last(dim, shares):
        return
    if set(probabilities.users) != {shares, chosen}:
        return
    scores = probabilities.args[0]
    chosen.replace_input_with(probabilities, scores)
    edit = Editor(captured, node)
    value = shares.meta["val"].to(scores.meta["val"].dtype)  # type: ignore[union-attr]
    taken = edit.call(_aten.gather.default, scores, -1, chosen, val=value)
    softmax = probabilities.target
    edit.replace(edit.call(softmax, taken, -1, *probabilities.args[2:], val=node.meta["val"], **probabilities.kwargs))


def _shares_of_chosen(captured: Captured, node: Node) -> None:
    """The scores of the chosen by their sum, and by a number, in one function, which is compiled."""
    taken, total = node.args[:2]
    if len(node.args) > 2 or kind(taken) != "gather" or taken.args[2].target is not expert_ops.chosen:  # type: ignore
        return
    least: Any = 0.0
    if kind(total) == "add" and not total.kwargs and len(total.args) == 2:  # type: ignore[union-attr]
        total, least = total.args  # type: ignore[union-attr]
    if kind(total) != "sum" or total.args[0] is not taken or not _kept_sum(total) or not _is_number(least):  # type: ignore
        return
    scale: Any = 1.0
    users = list(node.users)
    if len(users) == 1 and kind(users[0]) == "mul" and users[0].args[0] is node and _is_number(users[0].args[1]):
        node, scale = users[0], users[0].args[1]
    edit = Editor(captured, node)
    edit.replace(edit.call(expert_ops.shares, taken, least, scale, val=node.meta["val"]))


def _is_number(item: Any) -> bool:
    return isinstance(item, int | float)


def _last(dim: Any, node: Any) -> bool:
    return isinstance(dim, int) and dim % ndim(node) == ndim(node) - 1


def _kept_sum(total: Any) -> bool:
    dims = total.args[1] if len(total.args) > 1 else None
    return isinstance(dims, list | tuple) and len(dims) == 1 and shape(total)[-1] == 1 and _last(dims[0], total)
