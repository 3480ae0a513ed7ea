"""Weights that a model divides once, when it first runs: the program divides what comes of them in each step."""

from __future__ import annotations

import torch

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.stores import store
from mlxport.graph.rewrite.graph_queries import Editor, kind

__all__ = ["without_changes_of_weights"]


def without_changes_of_weights(captured: Captured) -> None:
    """Leave weights as checkpoints have them: a linear map by a part of one gives the same part of what it gave."""
    captured.mutations[:] = [change for change in captured.mutations if change[0] not in captured.trainable]
    for node in list(captured.graph.nodes):
        if node.target is store and node.meta["store"] in captured.trainable:
            captured.graph.erase_node(node)
    for node in list(captured.graph.nodes):
        if kind(node) != "linear" or len(node.args) > 2 or kind(node.args[1]) not in ("mul", "div"):
            continue
        weight, number = node.args[1].args  # type: ignore[union-attr]
        if weight in captured.weights and isinstance(number, int | float):
            edit = Editor(captured, node)
            made = edit.call(torch.ops.aten.linear.default, node.args[0], weight)
            edit.replace(edit.call(node.args[1].target, made, number))  # type: ignore[union-attr, arg-type]
    captured.graph.eliminate_dead_code()
