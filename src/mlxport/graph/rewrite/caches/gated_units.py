"""``silu(gate) * x`` as mlx-lm's models have it: one function, compiled."""

from __future__ import annotations

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower import cache_ops
from mlxport.graph.rewrite.graph_queries import Editor, kind, same_shape

__all__ = ["compile_gates"]


def compile_gates(captured: Captured) -> None:
    """Write ``swiglu`` for each product of one shape whose one factor is a SiLU that nothing else uses."""
    for node in list(captured.graph.nodes):
        if kind(node) != "mul" or len(node.args) != 2 or not all(isinstance(item, Node) for item in node.args):
            continue
        for gate, x in (node.args, node.args[::-1]):
            if kind(gate) == "silu" and len(gate.users) == 1 and gate is not x and _alike(gate, x, node):
                edit = Editor(captured, node)
                edit.replace(edit.call(cache_ops.swiglu, gate.args[0], x, val=node.meta["val"]))
                captured.graph.erase_node(gate)
                break


def _alike(gate: Node, x: Node, node: Node) -> bool:
    values = [item.meta.get("val") for item in (gate, x, node)]
    return all(isinstance(value, torch.Tensor) for value in values) and all(
        value.dtype == values[0].dtype and same_shape(value, values[0]) for value in values
    )
