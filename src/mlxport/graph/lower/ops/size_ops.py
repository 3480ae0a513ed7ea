"""Sizes of tensors and arithmetic on them."""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Callable
from typing import Any

from mlxport.graph.lower.expr import Expr, to_ast, value_of
from mlxport.graph.lower.registry import LOWERINGS, op


@op("aten.sym_size.int")
def sym_size(self: Expr, dim: int) -> Any:
    """``x.shape[dim]``."""
    return Expr(
        ast.Subscript(ast.Attribute(self.node, "shape"), ast.Constant(dim)), self.value.shape[dim], dynamic=True
    )


@op("aten.sym_numel.default")
def sym_numel(self: Expr) -> Any:
    """``x.size``."""
    return Expr(ast.Attribute(self.node, "size"), self.value.size, dynamic=True)


def _called(function: Callable[..., Any], spelling: str, *arguments: Any) -> Any:
    """``function`` of sizes, written ``spelling(...)``."""
    value = function(*map(value_of, arguments))
    if not any(isinstance(argument, Expr) for argument in arguments):
        return value
    callee = ast.parse(spelling, mode="eval").body
    return Expr(ast.Call(callee, [to_ast(argument) for argument in arguments], []), value, dynamic=True)


def _choice(condition: Any, chosen: Any, other: Any) -> Any:
    """``chosen if condition else other``."""
    if not isinstance(condition, Expr):
        return chosen if condition else other
    value = value_of(chosen) if condition.value else value_of(other)
    return Expr(ast.IfExp(condition.node, to_ast(chosen), to_ast(other)), value, dynamic=True)


def _negated(condition: Any) -> Any:
    """``not condition``."""
    if not isinstance(condition, Expr):
        return not condition
    return Expr(ast.UnaryOp(ast.Not(), condition.node), not condition.value, dynamic=True)


# Functions that are no operators of torch.ops: by the names under which they stand in graphs.
LOWERINGS["sym_ite"] = _choice
LOWERINGS["sym_not"] = _negated
for _name, _function, _spelling in (
    ("sym_max", max, "max"),
    ("sym_min", min, "min"),
    ("sym_float", float, "float"),
    ("sym_int", int, "int"),
    ("ceil", math.ceil, "math.ceil"),
    ("floor", math.floor, "math.floor"),
    ("trunc", math.trunc, "math.trunc"),
    ("round", round, "round"),
    ("_sym_sqrt", math.sqrt, "math.sqrt"),
):
    LOWERINGS[_name] = functools.partial(_called, _function, _spelling)
