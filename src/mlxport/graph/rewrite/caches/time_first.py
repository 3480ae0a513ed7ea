"""Modules of states with their channels last, as MLX's scans and convolutions have them; torch's have the time last."""

from __future__ import annotations

import torch
from torch.fx import Node

from mlxport.graph.capture.origin import module_path
from mlxport.graph.rewrite.caches.cached_step import CachedStep
from mlxport.graph.rewrite.graph_queries import Editor, kind, ndim, permutation, shape, swaps_matrix

__all__ = ["put_time_first"]

_aten = torch.ops.aten


def put_time_first(step: CachedStep, states: set[str]) -> None:
    """Let transposes in the modules at the paths ``states`` sink; ``channels_last`` moves them, and they cancel out."""
    graph = step.captured.graph
    for node in [item for item in graph.nodes if kind(item) == "matmul" and module_path(item) in states]:
        _linear(step, node)
    for node in [item for item in graph.nodes if kind(item) == "transpose" and module_path(item) in states]:
        node.target, node.args = _aten.permute.default, (node.args[0], permutation(node))


def _linear(step: CachedStep, node: Node) -> None:
    """A matrix times columns [batch, channels, length] is a linear map of rows; with its bias, if one is added."""
    weight, columns = node.args
    if weight not in step.captured.weights or ndim(weight) != 2 or not _turned(columns):
        return
    users = list(node.users)
    bias = _added(users[0], node) if len(users) == 1 else None
    edit = Editor(step.captured, node if bias is None else users[0])
    given = (columns.args[0], weight) if bias is None else (columns.args[0], weight, bias)
    edit.replace(edit.permute(edit.call(_aten.linear.default, *given), (0, 2, 1)))


def _turned(node: Node) -> bool:
    return ndim(node) == 3 and swaps_matrix(node)


def _added(user: Node, product: Node) -> Node | None:
    """A vector with a number for each channel that is added to the product."""
    if kind(user) != "add" or user.args[0] is not product or len(user.args) != 2 or user.kwargs:
        return None
    column = user.args[1]
    if kind(column) != "unsqueeze" or shape(column) != (shape(product)[1], 1):
        return None
    vector: Node = column.args[0]
    return vector
