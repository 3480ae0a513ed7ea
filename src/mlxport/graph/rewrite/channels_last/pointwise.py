"""Pointwise ops with permuted operands: they do not care about the order of axes, if all operands have the same one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from mlxport.graph.lower.traits import View, traits_of
from mlxport.graph.rewrite.channels_last.permutes import (
    PERMUTE,
    axes_of,
    give_back,
    inverse_of,
    is_permuted,
    permute,
    result_ndim,
)
from mlxport.graph.rewrite.graph_queries import same_size

__all__ = ["follows_places", "sink_pointwise"]

_aten = torch.ops.aten


def follows_places(node: Node) -> bool:
    """Whether each element of the result depends on its place alone: pointwise ops, copies, ``zeros_like``."""
    kind = traits_of(node)
    return kind.pointwise or kind.copy or (kind.creation and kind.name.endswith("_like"))


def sink_pointwise(graph: Graph, node: Node) -> bool:
    """Compute ``node`` in the inner order; operands that come in the outer one are brought into it."""
    operands, ndim = _operands(node), result_ndim(node)
    permuted = [item for item in operands if is_permuted(item) and item.meta["val"].ndim == ndim]
    if not permuted:
        return False
    axes = axes_of(permuted[0])
    if any(axes_of(item) != axes for item in permuted):
        return False
    others = [item for item in operands if item not in permuted]
    # An operand in the outer order is permuted itself; once only, or its permute would sink in turn.
    if others and node.meta.get("sunk"):
        return False
    inverse = inverse_of(axes)
    if any(not _cheap(item) and item.op == "placeholder" for item in others) and not _is_undone(node, inverse):
        return False
    node.meta["sunk"] = True
    for item in permuted:
        node.replace_input_with(item, item.args[0])
    for item in others:
        with graph.inserting_before(node):
            node.replace_input_with(item, aligned(graph, item, ndim, inverse, node.meta))
    return give_back(graph, node, axes)


def _operands(node: Node) -> list[Node]:
    """The tensors whose elements are taken: a cast and ``zeros_like`` ask others for their dtype only."""
    kind = traits_of(node)
    items = node.args[:1] if kind.cast or kind.creation else node.all_input_nodes
    return [item for item in items if isinstance(item, Node) and isinstance(item.meta.get("val"), torch.Tensor)]


def _is_undone(node: Node, inverse: Sequence[int]) -> bool:
    """Whether the result meets the permute that undoes its own: two are saved for the one that an operand costs."""
    seen, waiting = {node}, [node]
    while waiting:
        for user in waiting.pop().users:
            if user.target is PERMUTE and axes_of(user) == list(inverse):
                return True
            if user not in seen and follows_places(user):
                seen.add(user)
                waiting.append(user)
    return False


def _cheap(item: Node) -> bool:
    """Whether an operand broadcasts (a scale by channel, a scalar): permuting it costs nothing."""
    value = item.meta["val"]
    return sum(not (isinstance(size, int) and size == 1) for size in value.shape) <= 1


def aligned(graph: Graph, item: Node, ndim: int, inverse: Sequence[int], meta: dict[str, Any]) -> Node:
    """An operand that broadcasts against ``ndim`` axes, in the inner order."""
    value = item.meta["val"]
    if value.ndim == 0:
        return item
    sizes = [1] * (ndim - value.ndim) + list(value.shape)
    inner = [sizes[axis] for axis in inverse]
    while len(inner) > 1 and isinstance(inner[0], int) and inner[0] == 1:
        inner.pop(0)
    order = [axis for axis in inverse if not (isinstance(sizes[axis], int) and sizes[axis] == 1)]
    if order == sorted(order):  # a reshape does it
        return _reshaped(graph, item, inner, meta)
    if value.ndim < ndim:
        item = _reshaped(graph, item, sizes, meta)
    return permute(graph, item, inverse, meta)


def _reshaped(graph: Graph, item: Node, sizes: list[Any], meta: dict[str, Any]) -> Node:
    value = item.meta["val"]
    while traits_of(item).view is View.RESHAPED:
        item = item.args[0]
    own = item.meta["val"].shape
    if len(own) == len(sizes) and all(map(same_size, own, sizes)):
        return item
    if all(isinstance(size, int) for size in sizes):
        node = graph.call_function(_aten.view.default, (item, sizes))
        shape = sizes
    else:  # only axes of size one come or go
        return _squeezed(graph, item, value, sizes, meta)
    node.meta = {key: meta[key] for key in ("nn_module_stack", "stack_trace") if key in meta}
    node.meta["val"] = item.meta["val"].new_empty(shape)
    return node


def _squeezed(graph: Graph, item: Node, value: torch.Tensor, sizes: list[Any], meta: dict[str, Any]) -> Node:
    axes = [axis for axis, size in enumerate(item.meta["val"].shape) if isinstance(size, int) and size == 1]
    node = item
    if axes:
        node = graph.call_function(_aten.squeeze.dims, (item, axes))
        node.meta = {**meta, "val": item.meta["val"].squeeze(axes)}
    for axis, size in enumerate(sizes):
        if isinstance(size, int) and size == 1:
            before = node
            node = graph.call_function(_aten.unsqueeze.default, (before, axis))
            node.meta = {**meta, "val": before.meta["val"].unsqueeze(axis)}
    return node
