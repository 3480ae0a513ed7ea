"""Comparisons of symbolic sizes, decided by what torch.export has found out of them, or left open."""

from __future__ import annotations

import ast
from typing import Any

import sympy
from torch.utils._sympy.functions import FloorDiv, Mod

from mlxport.graph.lower import symbolic_sizes

__all__ = ["decided"]

_ARITHMETIC: dict[type[ast.AST], Any] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Mod: Mod,
    ast.FloorDiv: FloorDiv,
}
_RELATIONS: dict[type[ast.AST], Any] = {
    ast.Eq: sympy.Eq, ast.NotEq: sympy.Ne, ast.Lt: sympy.Lt, ast.LtE: sympy.Le, ast.Gt: sympy.Gt, ast.GtE: sympy.Ge,
}  # fmt: skip


def decided(tree: ast.expr) -> bool | None:
    """Whether a comparison of sizes holds for all sizes that the program may be called with; None where some differ."""
    try:
        expr = _expression(tree)
    except _NotOfSizes:
        return None
    if expr in (True, False):
        return bool(expr)
    known = next((found for found in map(symbolic_sizes.environment, expr.free_symbols) if found is not None), None)
    settled = None if known is None else known._maybe_evaluate_static(expr)
    return bool(settled) if settled is not None and settled in (True, False) else None


class _NotOfSizes(Exception):
    """The tree is of something else than sizes."""


def _expression(tree: ast.expr) -> Any:
    match tree:
        case ast.Constant(int() as value):
            return sympy.Integer(value)
        case ast.Name(name) if name.startswith("$"):
            return symbolic_sizes.expression(name)
        case ast.UnaryOp(ast.USub(), operand):
            return -_expression(operand)
        case ast.BinOp(left, operator, right) if type(operator) in _ARITHMETIC:
            return _ARITHMETIC[type(operator)](_expression(left), _expression(right))
        case ast.Compare(left, [operator], [right]) if type(operator) in _RELATIONS:
            return _RELATIONS[type(operator)](_expression(left), _expression(right))
    raise _NotOfSizes
