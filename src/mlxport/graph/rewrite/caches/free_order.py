"""Whether the order of what is chosen matters: its uses are followed until it is summed, or put where it belongs."""

from __future__ import annotations

import heapq
import math
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.lower import expert_ops
from mlxport.graph.lower.traits import View, filling, traits_of
from mlxport.graph.rewrite.graph_queries import kind, ndim, permutation, same_size, shape

__all__ = ["is_free"]

# Reductions whose result has no place in it, as that of argmax has.
_OF_ALL = frozenset({"sum", "mean", "amax", "amin", "prod", "any", "all"})
_SCATTERS = frozenset({"scatter", "scatter_add"})


class _Ordered(Exception):
    """What a node computes follows from the order."""


def is_free(choice: Node) -> bool:
    """Whether nothing depends on the order in which a ``topk`` of the last axis gives values and places.

    Each node that is computed of them is either put in another order with them, along one of its axes, or stays as it
    is, as a sum of all chosen does.
    """
    axes: dict[Node, int] = {choice: -1}
    rows: set[Node] = set()
    pending, seen = sorted(choice.users), set(choice.users)
    try:
        while pending:
            node = heapq.heappop(pending)  # in the order of the graph: all that it is made of is known
            if any(item in rows for item in node.all_input_nodes):
                _follow_rows(node, axes, rows)
            elif kind(node) != "sym_size":
                _follow(node, axes, rows)
            for user in node.users if node in axes or node in rows else ():
                if user not in seen:
                    seen.add(user)
                    heapq.heappush(pending, user)
    except _Ordered:
        return False
    return True


def _follow(node: Node, axes: dict[Node, int], rows: set[Node]) -> None:
    """Take note of the axis along which ``node`` is in the order of the choices, if it is in it at all."""
    if node.target is expert_ops.rows_by_expert:
        if node.args[0] in axes or axes[node.args[1]] != ndim(node.args[1]) - 1:  # type: ignore[index]
            raise _Ordered
        rows.add(node)
        return
    axis = _axis(node, axes)
    if axis is not None:
        axes[node] = axis


def _follow_rows(node: Node, axes: dict[Node, int], rows: set[Node]) -> None:
    """What is computed of rows for experts is by rows, until they are put in the order of the choices."""
    if node.target is not expert_ops.rows_of_tokens:
        if node.op != "call_function" or any(item in axes for item in node.all_input_nodes):
            raise _Ordered
        rows.add(node)
        return
    if axes.get(node.args[2]) != ndim(node.args[2]) - 1:  # type: ignore[arg-type]
        raise _Ordered
    axes[node] = ndim(node) - 2


def _axis(node: Node, axes: dict[Node, int]) -> int | None:
    """The axis in which ``node`` follows the order; None where it does not follow it.

    Raises:
        _Ordered: It depends on the order otherwise.
    """
    if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
        raise _Ordered
    source: Any = node.args[0]
    name, traits = kind(node), traits_of(node)
    if axes.get(source) == -1:  # values or places
        return ndim(node) - 1
    if name == "gather":
        return _taken(source, node.args[1], node.args[2], axes)
    if name in _SCATTERS:
        _put(node, axes)
        return None
    if name == "index":
        return _looked_up(node, axes)
    if traits.pointwise or traits.cast:
        return _broadcast(node, axes)
    if list(node.all_input_nodes)[0] is not source or source not in axes:
        raise _Ordered
    axis = axes[source]
    if name in _OF_ALL:
        return _reduced(node, axis)
    if name in ("_softmax", "softmax") or traits.view is View.SAME:
        return axis
    return _viewed(node, axis)


def _taken(source: Any, dim: Any, index: Any, axes: dict[Node, int]) -> int:
    """``take_along_axis`` by places, of what is in no order."""
    if source in axes or index not in axes or dim % ndim(index) != axes[index]:
        raise _Ordered
    return axes[index]


def _put(node: Node, axes: dict[Node, int]) -> None:
    """``put_along_axis``: each value goes where its place says; those of equal values need not be told apart."""
    source, dim, index, value = node.args[:4]
    if source in axes or index not in axes or dim % ndim(index) != axes[index]:  # type: ignore[operator,index,comparison-overlap]
        raise _Ordered
    alike = not isinstance(value, Node) or ndim(value) == 0 or filling(value) is not None
    if len(node.args) > 4 or node.kwargs or not (alike or axes.get(value) == axes[index]):  # type: ignore[arg-type,index]
        raise _Ordered


def _looked_up(node: Node, axes: dict[Node, int]) -> int:
    """``table[places]``."""
    source, indices = node.args
    if source in axes or len(indices) != 1 or indices[0] not in axes:  # type: ignore[arg-type,index,operator]
        raise _Ordered
    return axes[indices[0]]  # type: ignore[index]


def _broadcast(node: Node, axes: dict[Node, int]) -> int:
    """Pointwise: all that takes part is in the order, or the same for all choices."""
    from_end = {axes[item] - ndim(item) for item in node.all_input_nodes if item in axes}
    if len(from_end) != 1:
        raise _Ordered
    (place,) = from_end
    for item in node.all_input_nodes:
        if item not in axes and ndim(item) >= -place and not same_size(shape(item)[place], 1):
            raise _Ordered
    return ndim(node) + place


def _reduced(node: Node, axis: int) -> int | None:
    source: Any = node.args[0]
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = [given] if isinstance(given, int) else given
    if not dims:
        return None
    gone = {dim % ndim(source) for dim in dims}  # type: ignore[union-attr]
    if axis in gone:
        return None
    return axis if ndim(node) == ndim(source) else axis - sum(dim < axis for dim in gone)


def _viewed(node: Node, axis: int) -> int:
    source: Any = node.args[0]
    match traits_of(node).view:
        case View.REORDERED:
            return permutation(node).index(axis)
        case View.BROADCAST:
            return ndim(node) - ndim(source) + axis
        case View.RESHAPED:
            before = math.prod(shape(source)[:axis])
            for place, size in enumerate(shape(node)):
                lead = math.prod(shape(node)[:place])
                if same_size(lead, before) and same_size(size, shape(source)[axis]):
                    return place
    raise _Ordered
