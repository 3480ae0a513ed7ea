"""What a port returns: tensors in the structure of the original's result, with dicts for its dataclasses."""

from __future__ import annotations

import ast
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower import symbolic_sizes
from mlxport.graph.lower.expr import to_ast

__all__ = ["returned"]


def returned(captured: Captured) -> ast.expr:
    """What the root returns, in the structure of the original's result."""
    output = next(node for node in captured.graph.nodes if node.op == "output")
    (flat,) = output.args
    leaves = list(flat)

    def leaf(item: Any) -> ast.expr:
        if isinstance(item, Node):
            value = item.meta.get("val")
            return symbolic_sizes.placeholder(value) if isinstance(value, torch.SymInt) else ast.Name("%" + item.name)
        return to_ast(item)

    trees = iter([leaf(item) for item in leaves])

    def build_tree_(spec: Any) -> ast.expr:
        if spec.is_leaf():
            return next(trees)
        children = [build_tree_(child) for child in spec.children()]
        context = spec.context
        if spec.type is list:
            return ast.List(children)
        keys = _keys(spec.type, context, len(children))
        if keys is not None:
            return ast.Dict([to_ast(key) for key in keys], children)
        if not children:
            return ast.Constant(None) if spec.type is type(None) else ast.Tuple([])
        return ast.Tuple(children)

    return build_tree_(captured.out_spec)


def _keys(kind: Any, context: Any, count: int) -> list[Any] | None:
    """Names of the parts of a dict, a ModelOutput or a dataclass; None for a tuple."""
    if kind is tuple or (isinstance(kind, type) and issubclass(kind, tuple)):
        return None
    for item in (context, context[0] if isinstance(context, list | tuple) and context else None):
        if isinstance(item, list | tuple) and len(item) == count and count:
            if all(isinstance(key, str | int) for key in item):
                return list(item)
    return None
