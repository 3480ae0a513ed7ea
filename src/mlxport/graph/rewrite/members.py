"""Activations that are members of a Sequential become layers there, so that the list is the original's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.origin import module_path
from mlxport.graph.lower.layer_specs import LayerSpec, layer
from mlxport.graph.lower.traits import traits_of

__all__ = ["name_members"]

# Class of torch to the class of mlx.nn that computes the same, with its arguments.
_ACTIVATIONS: Mapping[type, Callable[[Any], tuple[str, dict[str, Any]]]] = {
    **{
        getattr(nn, name): (lambda module, name=name: (f"nn.{name}", {}))  # type: ignore[misc]
        for name in ("ReLU", "ReLU6", "SiLU", "Tanh", "Sigmoid", "Hardswish", "Mish", "SELU", "LogSigmoid", "Softsign")
    },
    nn.GELU: lambda module: ("nn.GELU", {} if module.approximate == "none" else {"approx": "tanh"}),
    nn.LeakyReLU: lambda module: ("nn.LeakyReLU", {"negative_slope": module.negative_slope}),
    nn.ELU: lambda module: ("nn.ELU", {} if module.alpha == 1.0 else {"alpha": module.alpha}),
}


def name_members(captured: Captured, layers: dict[str, LayerSpec]) -> None:
    """Turn the op of each such member into a call of it; adds to ``layers``."""
    own: dict[str, list[Node]] = {}
    for node in captured.graph.nodes:
        path = module_path(node)
        if node.op == "call_function" and _is_member(captured, path):
            own.setdefault(path, []).append(node)
    for path, nodes in own.items():
        module = captured.modules[path]
        if not all(_unary(node) for node in nodes) or any(user in nodes for node in nodes for user in node.users):
            continue
        constructor, args = _ACTIVATIONS[type(module)](module)
        layers[path] = spec = LayerSpec(path, constructor, args, 0)
        for node in nodes:
            node.args, node.kwargs = tuple(node.all_input_nodes), {}
            node.target = layer
            node.meta["layer"] = spec
            node.meta.pop("channels_last", None)


def _is_member(captured: Captured, path: str) -> bool:
    parent = captured.modules.get(path.rpartition(".")[0]) if "." in path else None
    return (
        parent is not None
        and type(parent).forward is nn.Sequential.forward
        and type(captured.modules.get(path)) in _ACTIVATIONS
        and path.rpartition(".")[2].isdigit()
    )


def _unary(node: Node) -> bool:
    """Whether the op maps one array of floats to one of the same shape and dtype, as the whole activation."""
    inputs = node.all_input_nodes
    if len(inputs) != 1 or not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    value, source = node.meta["val"], inputs[0].meta.get("val")
    return (
        isinstance(source, torch.Tensor)
        and value.dtype == source.dtype
        and value.dtype.is_floating_point
        and value.ndim == source.ndim
        and traits_of(node).pointwise
    )
