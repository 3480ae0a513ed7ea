"""Take out of a graph what computes nothing: copies, casts to the same dtype, expansions to the same shape."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from mlxport.graph.lower.one_function import is_assertion
from mlxport.graph.lower.traits import View, filling, traits_of
from mlxport.graph.rewrite.graph_queries import same_shape

__all__ = ["remove_noops"]

# What gives its input back where that has the result's shape, beside casts and views: dropout as captured in eval mode,
# a pad by nothing, one repetition, all of a tensor written over.
_IF_SAME = frozenset({"dropout", "feature_dropout", "constant_pad_nd", "repeat", "slice_scatter"})
_KEEPS_ORDER = (View.SAME, View.RESHAPED, View.BROADCAST, View.PART)


def remove_noops(graph: Graph) -> None:
    """Replace each op that gives its input back by that input, and drop assertions and dead nodes."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if is_assertion(node):
            graph.erase_node(node)
            continue
        source = _source(node)
        if isinstance(source, Node) and _gives_back(node, source):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _source(node: Node) -> Any:
    """The input that the op may give back."""
    if traits_of(node).logic == "and":
        return _shown(node)
    place = traits_of(node).name == "slice_scatter"  # what is written over all of another
    return node.args[place] if len(node.args) > place else None


def _shown(node: Node) -> Any:
    """What ``True & x`` gives."""
    for item, other in (node.args[:2], node.args[1::-1]):
        if filling(item) is True:
            return other
    return None


def _gives_back(node: Node, source: Node) -> bool:
    kind = traits_of(node)
    arranged = kind.cast or kind.view in _KEEPS_ORDER or kind.name in _IF_SAME
    if not arranged and kind.logic != "and" and not _neutral(node):
        return False
    result, value = node.meta.get("val"), source.meta.get("val")
    if kind.name == "dropout" and len(node.args) > 2 and node.args[2] and node.args[1] != 0:
        return False
    if not isinstance(result, torch.Tensor) or not isinstance(value, torch.Tensor):
        return False
    if kind.name in ("slice", "slice_copy") and len(node.args) > 4 and node.args[4] != 1:
        return False
    return result.dtype == value.dtype and same_shape(result, value)


# A number that changes nothing, as the second argument.
_NEUTRAL = {
    **dict.fromkeys(("aten.add.Tensor", "aten.sub.Tensor", "aten.add.Scalar", "aten.sub.Scalar"), 0),
    **dict.fromkeys(("aten.mul.Tensor", "aten.div.Tensor", "aten.mul.Scalar", "aten.div.Scalar"), 1),
    "aten.pow.Tensor_Scalar": 1,
}


def _neutral(node: Node) -> bool:
    """Whether a number is added or multiplied that changes nothing."""
    number = node.args[1] if len(node.args) > 1 else None
    key = str(node.target)
    return key in _NEUTRAL and isinstance(number, int | float) and number == _NEUTRAL[key] and number is not True
