"""Positions of new tokens: counted from the number of those before, which mlx-lm's caches know as ``offset``."""

from __future__ import annotations

import torch
from torch.fx import Node

from mlxport.graph.lower import cache_ops
from mlxport.graph.lower.fused_ops import rotary
from mlxport.graph.rewrite.caches.cached_step import CachedStep, NotCached
from mlxport.graph.rewrite.fuse.values import CannotEvaluate, symbols
from mlxport.graph.rewrite.graph_queries import Editor, kind, ndim, same_size, shape, where

__all__ = ["NotCounted", "count_from_offset"]


class NotCounted(NotCached):
    """A step whose positions start anew, since the model leaves it to ``generate`` to count the tokens before."""


class _Offset:
    """The number of tokens before, read once and before any cache is updated: it moves with the update."""

    def __init__(self, step: CachedStep) -> None:
        self._step = step
        self._node: Node | None = None

    def node(self) -> Node:
        if self._node is None:
            step = self._step
            layer = min(number for number, held in step.layers.items() if "keys" in held)
            place = step.place(layer) if step.source is None else (*step.place(layer), True)
            self._node = step.shared(
                cache_ops.offset, step.caches, *place, val=step.fake((), torch.int64), argument="offset"
            )
        return self._node


def count_from_offset(step: CachedStep) -> None:
    """Let rotary embeddings and tables of positions start at the cache's offset.

    Raises:
        NotCached: Something else is computed from the number of tokens before.
        NotCounted: New tokens have the same positions, however many came before.
    """
    offset = _Offset(step)
    if step.source is None and step.past is not None:
        _check_looked_up(step)
    _rotary(step, offset)
    _counted(step, offset)
    _added(step, offset)


def _check_looked_up(step: CachedStep) -> None:
    """Refuse places in a table that differ between new tokens, and do not follow from those before."""
    after = set(_after_past(step))
    for node in step.captured.graph.nodes:
        places = node.args[1] if kind(node) == "embedding" else None
        if places not in step.values.static or places in after or step.length not in symbols([places]):
            continue
        try:
            (found,) = step.values.run([places], {}, next(step.values.sizes()))
        except CannotEvaluate:
            continue
        if bool((found != found.flatten()[0]).any()):
            raise NotCounted(f"the positions of {where(node) or 'the model'} do not follow from the tokens before")


def _rotary(step: CachedStep, offset: _Offset) -> None:
    for node in list(step.captured.graph.nodes):
        if node.target is not rotary or (step.source is not None and not isinstance(node.args[5], Node)):
            continue  # an encoder counts from its first token
        if not isinstance(node.args[5], Node):
            raise NotCounted(f"the positions of {where(node) or 'the model'} do not follow from the tokens before")
        if node.args[5].meta["val"].node.expr != step.past:
            raise NotCached(f"rotary positions start at {node.args[5].meta['val']}")
        node.args = (*node.args[:5], offset.node(), *node.args[6:])


def _counted(step: CachedStep, offset: _Offset) -> None:
    """Whatever counts up from the number of tokens before, where something else is made of it."""
    counting = {node: start for node in _after_past(step) if (start := _start(step, node)) is not None}
    made: dict[int, Node] = {}
    for node, start in reversed(counting.items()):
        users = [user for user in node.users if user not in counting]
        if not users:
            continue
        if start not in made:
            value = step.fake((1, shape(step.ids)[1]), torch.int64)
            more = [start] if start else []
            made[start] = step.shared(
                cache_ops.positions, step.ids, offset.node(), *more, val=value, argument="positions"
            )
        placed = _like(step, made[start], node)
        node.replace_all_uses_with(placed, delete_user_cb=lambda user, users=users: user in users)


def _added(step: CachedStep, offset: _Offset) -> None:
    """The number of tokens before, added to a number of each new token: those that are no padding are counted, say."""
    for node in list(step.captured.graph.nodes):
        if kind(node) != "add" or node in step.values.static or not _of_each_token(step, node) or node.kwargs:
            continue
        for size in [item for item in node.args if isinstance(item, Node) and _is_past(step, item)]:
            edit = Editor(step.captured, node)
            rows = edit.call(cache_ops.row_offset, offset.node(), val=step.fake((1, 1), torch.int64))
            node.args = tuple(rows if item is size else item for item in node.args)


def _of_each_token(step: CachedStep, node: Node) -> bool:
    """Whether ``node`` is [batch, new tokens]."""
    sizes = shape(node) if ndim(node) == 2 else ()
    return bool(sizes) and all(same_size(own, size) for own, size in zip(sizes, shape(step.ids), strict=True))


def _is_past(step: CachedStep, node: Node) -> bool:
    size = node.meta.get("val")
    return isinstance(size, torch.SymInt) and bool(size.node.expr == step.past)


def _after_past(step: CachedStep) -> list[Node]:
    """Tensors that follow from sizes and constants alone, and from the number of tokens before."""
    found: dict[Node, bool] = {}
    for node in step.captured.graph.nodes:
        step.values.learn(node)
        if node.op != "call_function" or node not in step.values.static:
            continue
        value = node.meta.get("val")
        own = isinstance(value, torch.SymInt | torch.SymFloat) and step.past in value.node.expr.free_symbols
        found[node] = own or any(found.get(item, False) for item in node.all_input_nodes)
    return [node for node, after in found.items() if after and isinstance(node.meta.get("val"), torch.Tensor)]


def _start(step: CachedStep, node: Node) -> int | None:
    """Where ``node`` starts, beyond the tokens before, if its last axis counts up by one for each new token."""
    size = shape(node)[-1] if ndim(node) >= 1 else 1
    if isinstance(size, int) or size.node.expr != step.length:
        return None
    if any(other != 1 for other in shape(node)[:-1] if isinstance(other, int)) or not symbols([node]):
        return None
    starts = set()
    for sizes in step.values.sizes():
        try:
            (got,) = step.values.run([node], {}, sizes)
        except CannotEvaluate:
            return None
        wanted = (torch.arange(sizes[step.length]) + sizes[step.past]).expand(got.shape)
        difference = got.double() - wanted.double()
        if got.dtype is torch.bool or float(difference.max() - difference.min()) != 0:
            return None
        starts.add(float(difference.flatten()[0]))
    start = starts.pop()
    return int(start) if not starts and start == int(start) else None


def _like(step: CachedStep, positions: Node, node: Node) -> Node:
    """Positions [1 or batch, length] with the axes and the dtype of ``node``, in its place."""
    edit = Editor(step.captured, node)
    result = positions
    rank = ndim(node)
    if rank == 1:
        result = edit.call(cache_ops.same_positions, positions, val=step.fake(shape(node), torch.int64))
    rows = _row_axis(step, node)
    for axis in range(rank - 2):
        result = edit.call(torch.ops.aten.unsqueeze.default, result, axis if axis < rows else 1 + axis)
    if rank > 1 and not isinstance(shape(node)[0], int):  # the original has them for each row
        result = edit.call(torch.ops.aten.expand.default, result, edit.sizes(step.ids, (0, 1)), val=node.meta["val"])
    return edit.cast(result, node.meta["val"].dtype)


def _row_axis(step: CachedStep, node: Node) -> int:
    """The axis of positions that the rows of a batch have: its own, or that which it is spread along later."""
    batch, rank = shape(step.ids)[0], ndim(node)
    for item in (node, *node.users):
        if ndim(item) == rank:
            found = [axis for axis, size in enumerate(shape(item)[:-1]) if same_size(size, batch)]
            if found:
                return found[0]
    return 0
