"""Whether every query may see a key, by how an attention mask is made: what the lowering of attention asks."""

from __future__ import annotations

import torch
from torch.fx import Node

from mlxport.graph.lower.fused_ops import sliding_window
from mlxport.graph.lower.traits import View, filling, traits_of

__all__ = ["every_row_sees"]


def every_row_sees(mask: object) -> bool:
    """Whether each row (last axis) of a mask surely shows a key; False where that is not known."""
    if not isinstance(mask, Node):
        return False
    if not _is_bool(mask):
        return _finite(mask)
    kind, args = traits_of(mask), mask.args
    if _all_true(mask) or _keeps_rows(mask) and every_row_sees(args[0]) or mask.target is sliding_window:
        return True
    if kind.logic == "or":
        return any(map(every_row_sees, args))
    if kind.logic == "and":
        return any(every_row_sees(a) and _all_true(b) for a, b in (args, args[::-1]))
    if kind.name == "tril":
        diagonal = args[1] if len(args) > 1 else 0
        return isinstance(diagonal, int) and diagonal >= 0 and _all_true(args[0])
    if kind.name == "le":  # the first key, number 0, is not after any query
        return _counts_keys(args[0]) and _not_negative(args[1])
    return kind.name == "ge" and _counts_keys(args[1]) and _not_negative(args[0])


def _finite(node: object) -> bool:
    """Whether an added mask is made of learned numbers: a table of biases by distance."""
    if not isinstance(node, Node):
        return isinstance(node, int | float)
    kind = traits_of(node)
    if kind.name == "embedding":
        return isinstance(node.args[0], Node) and node.args[0].op == "placeholder"
    tensors = [item for item in node.all_input_nodes if isinstance(item.meta.get("val"), torch.Tensor)]
    arranged = kind.copy or kind.view not in (None, View.REINTERPRETED)
    return (arranged or kind.name in ("add", "mul", "div")) and bool(tensors) and all(map(_finite, tensors))


def _is_bool(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype is torch.bool


def _keeps_rows(node: Node) -> bool:
    """Whether the node has its input's rows: repeated, or under more axes before the last."""
    kind = traits_of(node)
    if kind.name == "unsqueeze":
        return node.args[1] not in (-1, node.meta["val"].ndim - 1)
    return kind.view in (View.SAME, View.BROADCAST)


def _all_true(node: object) -> bool:
    if not isinstance(node, Node) or not _is_bool(node):
        return False
    return filling(node) is True or _keeps_rows(node) and _all_true(node.args[0])


def _arange_from(node: Node) -> int | None:
    """The first number of an ascending ``arange`` of integers."""
    if node.meta["val"].dtype.is_floating_point:
        return None
    if str(node.target) == "aten.arange.default":
        return 0
    start = node.args[0] if str(node.target) in ("aten.arange.start", "aten.arange.start_step") else None
    step = node.args[2] if len(node.args) > 2 else 1
    return start if isinstance(start, int) and isinstance(step, int) and step > 0 else None


def _counts_keys(node: object) -> bool:
    """Whether the last axis counts from 0."""
    if not isinstance(node, Node):
        return False
    return _arange_from(node) == 0 or _keeps_rows(node) and _counts_keys(node.args[0])


def _not_negative(node: object) -> bool:
    if not isinstance(node, Node):
        return False
    start = _arange_from(node)
    moved = traits_of(node).name == "unsqueeze" or _keeps_rows(node)
    return (start is not None and start >= 0) or (moved and _not_negative(node.args[0]))
