"""Masks that hide nothing: an encoder's output is seen as a whole, and a mask of its size would have to be kept."""

from __future__ import annotations

from torch.fx import Node

from mlxport.graph.rewrite.caches.cached_step import CachedStep
from mlxport.graph.rewrite.fuse.mask_forms import mask_form
from mlxport.graph.rewrite.fuse.values import symbols
from mlxport.graph.rewrite.graph_queries import is_float, kind, ndim, same_size, shape

__all__ = ["drop_idle_masks"]


def drop_idle_masks(step: CachedStep) -> None:
    """Take what is added to scores and is 0 at all sizes out again."""
    for node in list(step.captured.graph.nodes):
        if kind(node) != "add" or ndim(node) < 3 or not is_float(node) or node.kwargs:
            continue
        for scores, mask in (node.args[:2], node.args[1::-1]):
            if isinstance(scores, Node) and isinstance(mask, Node) and _adds_nothing(step, node, scores, mask):
                node.replace_all_uses_with(scores)
                step.captured.graph.erase_node(node)
                break


def _adds_nothing(step: CachedStep, node: Node, scores: Node, mask: Node) -> bool:
    if scores.meta["val"].dtype != node.meta["val"].dtype or ndim(scores) != ndim(node):
        return False
    if not all(same_size(own, size) for own, size in zip(shape(scores), shape(node), strict=True)):
        return False
    step.values.learn(mask)
    lengths = shape(node)[-2], shape(node)[-1]
    static = mask in step.values.static and bool(symbols([mask]))  # others are constants, which stay
    return static and mask_form(mask, step.values, lengths, None) == "none"
