"""Take out of a graph what computes nothing: copies, casts to the same dtype, expansions to the same shape."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from mlxport.graph.lower.one_function import is_assertion

__all__ = ["remove_noops", "same_shape"]

_ALWAYS = frozenset(
    f"aten.{name}"
    for name in ("clone.default", "detach.default", "alias.default", "contiguous.default", "lift_fresh_copy.default",
                 "lift.default", "dropout.default", "positive.default", "lift_fresh.default", "resolve_conj.default",
                 "resolve_neg.default")
)  # fmt: skip
_IF_SAME = frozenset(
    f"aten.{name}"
    for name in ("_to_copy.default", "to.dtype", "to.dtype_layout", "to.device", "to.other", "type_as.default",
                 "expand.default", "slice.Tensor", "view.default", "_unsafe_view.default", "reshape.default",
                 "repeat.default", "expand_as.default", "feature_dropout.default", "squeeze.dim", "squeeze.dims",
                 "squeeze.default", "constant_pad_nd.default", "flatten.using_ints", "view_as.default",
                 "reshape_as.default", "broadcast_to.default", "narrow.default", "unflatten.int")
)  # fmt: skip


def same_shape(a: Any, b: Any) -> bool:
    """Whether two fake tensors have the same sizes, dynamic ones included."""
    return len(a.shape) == len(b.shape) and all(_same(x, y) for x, y in zip(a.shape, b.shape, strict=True))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    if isinstance(a, int) or isinstance(b, int):
        return False
    return bool(a.node.expr == b.node.expr)


def remove_noops(graph: Graph) -> None:
    """Replace each op that gives its input back by that input, and drop assertions and dead nodes."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if is_assertion(node):
            graph.erase_node(node)
            continue
        source = _shown(node) if str(node.target) in _AND else node.args[0] if node.args else None
        if isinstance(source, Node) and _gives_back(node, source):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _shown(node: Node) -> Any:
    """What ``True & x`` gives."""
    for item, other in (node.args[:2], node.args[1::-1]):
        if isinstance(item, Node) and str(item.target) in _TRUE and item.meta["val"].dtype is torch.bool:
            if str(item.target).endswith("ones.default") or item.args[-1] is True:
                return other
    return None


_AND = ("aten.bitwise_and.Tensor", "aten.logical_and.default", "aten.__and__.Tensor")
_TRUE = ("aten.ones.default", "aten.new_ones.default", "aten.full.default", "aten.new_full.default")


def _gives_back(node: Node, source: Node) -> bool:
    key = str(node.target)
    if key not in _ALWAYS and key not in _IF_SAME and key not in _AND and not _neutral(key, node):
        return False
    result, value = node.meta.get("val"), source.meta.get("val")
    if key == "aten.dropout.default" and len(node.args) > 2 and node.args[2] and node.args[1] != 0:
        return False
    if not isinstance(result, torch.Tensor) or not isinstance(value, torch.Tensor):
        return False
    if key == "aten.slice.Tensor" and len(node.args) > 4 and node.args[4] != 1:
        return False
    return result.dtype == value.dtype and same_shape(result, value)


_NEUTRAL = {
    **dict.fromkeys(("aten.add.Tensor", "aten.sub.Tensor", "aten.add.Scalar", "aten.sub.Scalar"), 0),
    **dict.fromkeys(("aten.mul.Tensor", "aten.div.Tensor", "aten.mul.Scalar", "aten.div.Scalar"), 1),
    "aten.pow.Tensor_Scalar": 1,
}


def _neutral(key: str, node: Node) -> bool:
    """Whether a number is added or multiplied that changes nothing."""
    number = node.args[1] if len(node.args) > 1 else None
    return key in _NEUTRAL and isinstance(number, int | float) and number == _NEUTRAL[key] and number is not True
