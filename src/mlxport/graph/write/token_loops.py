"""Calls of modules that were captured for one token: one for each token, the results put together."""

from __future__ import annotations

import ast

from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower import cache_ops
from mlxport.graph.lower.expr import to_ast
from mlxport.graph.lower.ops.stored_states import EACH_TOKEN
from mlxport.graph.write.tree import Scope, nodes_in

__all__ = ["call_for_each_token"]


def call_for_each_token(captured: Captured, scope: Scope, call: ast.Call) -> ast.expr:
    """``each_token(lambda t, valid: self.mixer(x[:, t : t + 1], valid, cache), mask, x.shape[1])``."""
    axis = captured.each_token[scope.path]
    along = {
        "%" + node.name: node.meta["each_token"][scope.path]
        for node in scope.inputs
        if scope.path in node.meta.get("each_token", {})
    }
    masks = {"%" + item.name for node in nodes_in(scope) for item in node.all_input_nodes if _is_mask(item)}
    given: list[ast.expr] = []
    mask: ast.expr = ast.Constant(None)
    for argument in call.args:
        name = argument.id if isinstance(argument, ast.Name) else ""
        if name in masks:
            mask, argument = argument, ast.Name("valid")
        elif name in along:
            argument = _token(argument, along[name])
        given.append(argument)
    first, place = next(iter(along.items()))
    length = ast.Subscript(ast.Attribute(ast.Name(first), "shape"), ast.Constant(place))
    names = [ast.arg("t"), ast.arg("valid")]
    taken = ast.arguments(posonlyargs=[], args=names, kwonlyargs=[], kw_defaults=[], defaults=[])
    step = ast.Lambda(taken, ast.Call(call.func, given, []))
    more = [ast.keyword("axis", ast.Constant(axis))] if axis != 1 else []
    return ast.Call(to_ast(EACH_TOKEN), [step, mask, length], more)


def _is_mask(node: Node) -> bool:
    return node.target is cache_ops.state_mask


def _token(argument: ast.expr, axis: int) -> ast.expr:
    """``x[:, t : t + 1]``."""
    t = ast.Name("t")
    one = ast.Slice(t, ast.BinOp(t, ast.Add(), ast.Constant(1)))
    places: list[ast.expr] = [*(ast.Slice() for _ in range(axis)), one]
    return ast.Subscript(argument, places[0] if len(places) == 1 else ast.Tuple(places))
