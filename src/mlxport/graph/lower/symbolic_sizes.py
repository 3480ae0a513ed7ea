"""Dynamic sizes in emitted source: sympy expressions of torch's symbolic shapes as Python arithmetic on ``x.shape``."""

from __future__ import annotations

import ast
import weakref
from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch.fx import Node

from mlxport.graph.lower.unsupported import UnsupportedOp

__all__ = ["TOTAL", "environment", "expression", "placeholder", "size_name", "written"]

TOTAL = "total"  # symbol of the number of all tokens, in a step of generation
_EXPRESSIONS: dict[str, sympy.Expr] = {}
_NAMES: dict[sympy.Expr, str] = {}  # sympy takes long to print
_ENVIRONMENTS: dict[sympy.Expr, weakref.ref[Any]] = {}


def placeholder(size: Any) -> ast.expr:
    """The stand-in for a size until the scope that it is used in says where it comes from."""
    expr = size if isinstance(size, sympy.Basic) else size.node.expr
    if expr.is_number:
        return _number(expr)
    if not isinstance(size, sympy.Basic):
        known = weakref.ref(size.node.shape_env)
        _ENVIRONMENTS.update(dict.fromkeys(expr.free_symbols, known))
    if expr not in _NAMES:
        _NAMES[expr] = "$" + str(expr)
        _EXPRESSIONS[_NAMES[expr]] = expr
    return ast.Name(_NAMES[expr])


def expression(name: str) -> sympy.Expr:
    """The sympy expression of a stand-in."""
    return _EXPRESSIONS[name]


def environment(symbol: sympy.Symbol) -> Any:
    """What torch.export knows of the sizes of the program in which ``symbol`` was last seen; None if that is gone."""
    known = _ENVIRONMENTS.get(symbol)
    return None if known is None else known()


def size_name(captured: Any, size: sympy.Expr) -> str:
    """A name for a size: ``B`` for the first axis of inputs, ``L`` for a sequence, ``H`` and ``W`` for an image."""
    if (said := captured.size_names.get(str(size))) is not None:
        return str(said)
    for node in captured.inputs:
        value = node.meta.get("val") if isinstance(node, Node) else None
        if isinstance(value, torch.Tensor):
            for axis, found in enumerate(value.shape):
                if isinstance(found, torch.SymInt) and found.node.expr == size:
                    return _AXES.get((value.ndim, axis), "N" if axis == 0 else "L")
    return "N" if not size.is_Symbol or str(size).startswith(("u", TOTAL)) else "L"


_AXES = {
    (1, 0): "N",
    (4, 2): "H",
    (4, 3): "W",
    (5, 2): "D",
    (5, 3): "H",
    (5, 4): "W",
    (2, 0): "B",
    (3, 0): "B",
    (4, 0): "B",
}


def written(size: sympy.Expr, names: Mapping[sympy.Expr, str]) -> ast.expr:
    """``size`` as Python arithmetic on the variables of ``names``.

    Raises:
        UnsupportedOp: for a function that Python's integers have no counterpart of.
    """
    if isinstance(names, _Known):
        if size not in names.trees:
            names.trees[size] = _spelled(size, names)
        return names.trees[size]
    return written(size, _Known(names))


class _Known(dict[sympy.Expr, str]):
    """Names of sizes, and what has been written with them: sizes share parts, each of which is written once."""

    def __init__(self, names: Mapping[sympy.Expr, str]) -> None:
        super().__init__(names)
        self.trees: dict[sympy.Expr, ast.expr] = {}


def _spelled(size: sympy.Expr, names: Mapping[sympy.Expr, str]) -> ast.expr:
    if size in names:
        return ast.Name(names[size])
    if size.is_number:
        return _number(size)
    parts = [written(arg, names) for arg in size.args]
    match type(size).__name__:
        case "Add":
            return _sum(size, names)
        case "Mul":
            return _product(size, names)
        case "Pow" | "FloatPow" | "PowByNatural":
            return ast.BinOp(parts[0], ast.Pow(), parts[1])
        case "FloorDiv" | "CleanDiv":
            return ast.BinOp(parts[0], ast.FloorDiv(), parts[1])
        case "Mod" | "PythonMod":
            return ast.BinOp(parts[0], ast.Mod(), parts[1])
        case "Max":
            return ast.Call(ast.Name("max"), parts, [])
        case "Min":
            return ast.Call(ast.Name("min"), parts, [])
        case "CeilToInt":
            return ast.Call(ast.Attribute(ast.Name("math"), "ceil"), parts, [])
        case "FloorToInt" | "TruncToInt":
            return ast.Call(ast.Attribute(ast.Name("math"), "floor"), parts, [])
        case "IntTrueDiv" | "FloatTrueDiv":
            return ast.BinOp(parts[0], ast.Div(), parts[1])
        case "ToFloat":
            return ast.Call(ast.Name("float"), parts, [])
        case "TruncToFloat":
            return ast.Call(ast.Name("float"), [ast.Call(ast.Attribute(ast.Name("math"), "floor"), parts, [])], [])
        case "RoundToInt":
            return ast.Call(ast.Name("round"), parts, [])
        case "RoundDecimal":
            return ast.Call(ast.Name("round"), parts, [])
        case "CeilDiv":  # no name of its own: -(-a // b)
            below = ast.BinOp(ast.UnaryOp(ast.USub(), parts[0]), ast.FloorDiv(), parts[1])
            return ast.UnaryOp(ast.USub(), below)
        case "LShift":
            return ast.BinOp(parts[0], ast.LShift(), parts[1])
        case "RShift":
            return ast.BinOp(parts[0], ast.RShift(), parts[1])
        case "Where":
            return ast.IfExp(parts[0], parts[1], parts[2])
        case "Identity":
            return parts[0]
        case name if name in _FUNCTIONS:
            return ast.Call(ast.Attribute(ast.Name("math"), _FUNCTIONS[name]), parts, [])
        case name if name in _RELATIONS:
            return ast.Compare(parts[0], [_RELATIONS[name]()], [parts[1]])
    raise UnsupportedOp(f"arithmetic on sizes: {size} ({type(size).__name__})")


# math.sqrt(size) and its like, as torch names them.
_FUNCTIONS = {
    f"OpaqueUnaryFn_{name}": name for name in "sqrt cos cosh sin sinh tan tanh asin acos atan exp log log2".split()
}
_RELATIONS = {
    "Equality": ast.Eq, "Unequality": ast.NotEq, "StrictLessThan": ast.Lt, "LessThan": ast.LtE,
    "StrictGreaterThan": ast.Gt, "GreaterThan": ast.GtE,
}  # fmt: skip


def _number(number: sympy.Expr) -> ast.expr:
    value = int(number) if number.is_integer else float(number)
    return ast.Constant(value) if value >= 0 else ast.UnaryOp(ast.USub(), ast.Constant(-value))


def _sum(size: sympy.Expr, names: Mapping[sympy.Expr, str]) -> ast.expr:
    terms = sorted(size.args, key=lambda term: (_negative(term), bool(term.is_number)))
    tree = written(terms[0], names)
    for term in terms[1:]:
        if _negative(term):
            tree = ast.BinOp(tree, ast.Sub(), written(-term, names))
        else:
            tree = ast.BinOp(tree, ast.Add(), written(term, names))
    return tree


def _negative(term: sympy.Expr) -> bool:
    return bool(term.could_extract_minus_sign())


def _product(size: sympy.Expr, names: Mapping[sympy.Expr, str]) -> ast.expr:
    below = [factor for factor in size.args if factor.is_Rational and not factor.is_Integer]
    if below:
        fraction = below[0]
        top = sympy.Mul(*[factor for factor in size.args if factor is not fraction], fraction.p)
        return ast.BinOp(written(top, names), ast.FloorDiv(), ast.Constant(int(fraction.q)))
    factors = sorted(size.args, key=lambda factor: bool(factor.is_number))
    tree = written(factors[0], names)
    for factor in factors[1:]:
        tree = ast.BinOp(tree, ast.Mult(), written(factor, names))
    return tree
