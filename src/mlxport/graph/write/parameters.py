"""The parameters of a port: their paths, how each is allocated, and how it is made of the original's tensors."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.expr import to_ast
from mlxport.graph.lower.layer_specs import LayerSpec, Weight
from mlxport.graph.lower.lowering import hint, mx_dtype
from mlxport.graph.write.scope_parts import Body, Context

__all__ = ["port_parameters", "weight_shapes"]


def weight_shapes(captured: Captured) -> dict[str, ast.expr]:
    """How each weight that is no layer's is allocated."""
    shapes: dict[str, ast.expr] = {}
    for node, name in captured.weights.items():
        value = node.meta["val"]
        shape = tuple(hint(size) for size in value.shape)
        dtype = mx_dtype(value.dtype)
        arguments: list[Any] = [shape] if str(dtype) == "mlx.core.float32" else [shape, dtype]
        shapes[name] = ast.Call(ast.Attribute(ast.Name("mx"), "zeros"), [to_ast(item) for item in arguments], [])
    return shapes


def port_parameters(context: Context, bodies: Sequence[Body], layers: Mapping[str, LayerSpec]) -> dict[str, Weight]:
    """The port's parameters: path to how each is made."""
    found: dict[str, Weight] = {}
    names = set(context.captured.weights.values())
    for full in (full for body in bodies for full in body.used):
        path = context.paths.port(full)
        if full in layers:
            for key, weight in layers[full].weights.items():
                found[f"{path}.{key}"] = weight
        elif full in names:
            found[path] = Weight((full,))
    return found
