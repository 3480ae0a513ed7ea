"""Strides of a view are over the memory that it is a view of: they are put on the tensor that has this memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Graph, Node

from mlxport.graph.lower.lowering import hint

__all__ = ["stride_over_owners"]

_STRIDED = ("aten.as_strided.default", "aten.as_strided_copy.default")
_SCATTERED = ("aten.as_strided_scatter.default", "prims.as_strided_scatter.default")


def stride_over_owners(graph: Graph) -> None:
    """Let every ``as_strided`` of a view be one of the tensor whose elements it reads, with the offset spelled out.

    The order in which that tensor has its axes in memory is noted: copies that put them in order are taken out later.
    """
    for node in graph.nodes:
        if str(node.target) in _SCATTERED:
            node.meta["memory_order"] = _order(node.args[0].meta["val"])
        if str(node.target) not in _STRIDED:
            continue
        array, size, stride, *rest = node.args
        owner = _owner(array)
        offset = rest[0] if rest and rest[0] is not None else array.meta["val"].storage_offset()
        node.args = (owner, size, stride, offset)
        node.meta["memory_order"] = _order(owner.meta["val"])


def _order(value: torch.Tensor) -> list[int] | None:
    """The axes of a tensor as they follow each other in memory; None if its elements are not all that is there."""
    strides = [hint(step) for step in value.stride()]
    sizes = [hint(size) for size in value.shape]
    order = sorted(range(value.ndim), key=lambda dim: (-strides[dim], dim))
    steps = [math.prod(sizes[later] for later in order[place + 1 :]) for place in range(value.ndim)]
    dense = all(strides[dim] == step or sizes[dim] == 1 for dim, step in zip(order, steps, strict=True))
    return order if dense and hint(value.storage_offset()) == 0 else None


def _owner(node: Any) -> Node:
    """The tensor that a chain of views is of."""
    while isinstance(node.target, torch._ops.OpOverload) and _is_view(node.target):
        if node.all_input_nodes[0].meta["val"].dtype != node.meta["val"].dtype:
            break
        node = node.all_input_nodes[0]
    return node  # type: ignore[no-any-return]


def _is_view(target: torch._ops.OpOverload) -> bool:
    returned = target._schema.returns
    alias = returned[0].alias_info if len(returned) == 1 else None
    return alias is not None and not alias.is_write
