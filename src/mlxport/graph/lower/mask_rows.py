"""Whether every query may see a key, by how an attention mask is made: what the lowering of attention asks."""

from __future__ import annotations

import torch
from torch.fx import Node

from mlxport.graph.lower.fused_ops import sliding_window

__all__ = ["every_row_sees"]

_SAME_ROWS = ("aten.expand.default", "aten.clone.default", "aten.alias.default", "aten.detach.default")
_OR = ("aten.bitwise_or.Tensor", "aten.logical_or.default", "aten.__or__.Tensor")
_AND = ("aten.bitwise_and.Tensor", "aten.logical_and.default", "aten.__and__.Tensor")
_ONES = ("aten.ones.default", "aten.new_ones.default", "aten.ones_like.default")
_FULL = ("aten.full.default", "aten.new_full.default", "aten.full_like.default")


def every_row_sees(mask: object) -> bool:
    """Whether each row (last axis) of a mask surely shows a key; False where that is not known."""
    if not isinstance(mask, Node):
        return False
    if not _is_bool(mask):
        return _finite(mask)
    key, args = str(mask.target), mask.args
    if _all_true(mask) or _keeps_rows(mask) and every_row_sees(args[0]) or mask.target is sliding_window:
        return True
    if key in _OR:
        return any(map(every_row_sees, args))
    if key in _AND:
        return any(every_row_sees(a) and _all_true(b) for a, b in (args, args[::-1]))
    if key == "aten.tril.default":
        diagonal = args[1] if len(args) > 1 else 0
        return isinstance(diagonal, int) and diagonal >= 0 and _all_true(args[0])
    if key == "aten.le.Tensor":  # the first key, number 0, is not after any query
        return _counts_keys(args[0]) and _not_negative(args[1])
    return key == "aten.ge.Tensor" and _counts_keys(args[1]) and _not_negative(args[0])


_FINITE = frozenset("permute unsqueeze expand view transpose add mul div _to_copy slice select squeeze reshape".split())


def _finite(node: object) -> bool:
    """Whether an added mask is made of learned numbers: a table of biases by distance."""
    if not isinstance(node, Node):
        return isinstance(node, int | float)
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    if name == "embedding":
        return isinstance(node.args[0], Node) and node.args[0].op == "placeholder"
    tensors = [item for item in node.all_input_nodes if isinstance(item.meta.get("val"), torch.Tensor)]
    return name in _FINITE and bool(tensors) and all(map(_finite, tensors))


def _is_bool(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype is torch.bool


def _keeps_rows(node: Node) -> bool:
    """Whether the node has its input's rows: repeated, or under more axes before the last."""
    if str(node.target) == "aten.unsqueeze.default":
        return node.args[1] not in (-1, node.meta["val"].ndim - 1)
    return str(node.target) in _SAME_ROWS


def _all_true(node: object) -> bool:
    if not isinstance(node, Node) or not _is_bool(node):
        return False
    if str(node.target) in _FULL:
        return node.args[-1] is True
    return str(node.target) in _ONES or _keeps_rows(node) and _all_true(node.args[0])


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
    moved = str(node.target) == "aten.unsqueeze.default" or _keeps_rows(node)
    return (start is not None and start >= 0) or (moved and _not_negative(node.args[0]))
