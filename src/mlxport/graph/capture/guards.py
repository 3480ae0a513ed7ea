"""What torch.export assumed of the inputs' sizes, as few rules that the port checks when it is called."""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower import symbolic_sizes
from mlxport.graph.lower.registry import UnsupportedOp

__all__ = ["SizeRule", "relations", "size_rules"]

_SPAN = 1024  # sizes that are tried from the smallest on
_LARGEST_STEP = 64


@dataclass(frozen=True)
class SizeRule:
    """Which values a size may have: from ``low`` to ``high`` (None: any), ``remainder`` modulo ``step``."""

    low: int
    high: int | None
    step: int = 1
    remainder: int = 0

    @property
    def trivial(self) -> bool:
        """Whether any positive size will do."""
        return self.low <= 1 and self.high is None and self.step == 1

    def nearest(self, size: int) -> int:
        """The size that fits which is nearest below ``size``, or else the least one."""
        size = size if self.high is None else min(size, self.high)
        size -= (size - self.remainder) % self.step
        return max(size, self.low)

    def as_tuple(self) -> tuple[int | None, ...]:
        """What ``check_inputs`` takes."""
        return (self.low, self.high) if self.step == 1 else (self.low, self.high, self.step, self.remainder)


def _guards(captured: Captured, symbols: Sequence[sympy.Symbol]) -> list[sympy.Expr]:
    for node in captured.graph.nodes:
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, torch.Tensor) else ():
            if isinstance(size, torch.SymInt):
                known = set(symbols)
                exprs = [guard.expr for guard in size.node.shape_env.guards]
                return list(dict.fromkeys(expr for expr in exprs if expr.free_symbols <= known))
    return []


def _not_one(expr: sympy.Expr) -> bool:
    """Whether a guard only keeps a size from being one, which torch.export takes as fixed and MLX broadcasts."""
    if not isinstance(expr, sympy.core.relational.Relational) or not any(part.is_Integer for part in expr.args):
        return False
    left, right = expr.args
    match expr:
        case sympy.Ne():
            return 1 in (left, right)
        case sympy.Ge() | sympy.Gt():
            return bool(right == (2 if isinstance(expr, sympy.Ge) else 1))
        case sympy.Le() | sympy.Lt():
            return bool(left == (2 if isinstance(expr, sympy.Le) else 1))
    return False


def _compiled(expr: sympy.Expr, symbols: Sequence[sympy.Symbol]) -> Callable[..., bool] | None:
    try:
        tree = _boolean(expr, {symbol: str(symbol) for symbol in symbols})
    except UnsupportedOp:
        return None
    text = f"lambda {', '.join(map(str, symbols))}: {ast.unparse(ast.fix_missing_locations(tree))}"
    function: Callable[..., bool] = eval(text, {"math": math})  # of a tree that is made here
    return function


def _boolean(expr: sympy.Expr, names: Mapping[sympy.Expr, str]) -> ast.expr:
    if isinstance(expr, sympy.Or | sympy.And):
        operator = ast.Or() if isinstance(expr, sympy.Or) else ast.And()
        return ast.BoolOp(operator, [_boolean(part, names) for part in expr.args])
    if isinstance(expr, sympy.Not):
        return ast.UnaryOp(ast.Not(), _boolean(expr.args[0], names))
    return symbolic_sizes.written(expr, names)


def _holds(check: Callable[..., bool], *values: int) -> bool:
    try:
        return bool(check(*values))
    except (ZeroDivisionError, OverflowError):
        return False


def size_rules(captured: Captured, symbols: Sequence[sympy.Symbol]) -> dict[sympy.Symbol, SizeRule]:
    """For each symbol the values that every guard on it alone allows."""
    guards = _guards(captured, symbols)
    rules = {}
    for symbol in symbols:
        _, high = captured.ranges.get(str(symbol), (0, 2**63 - 1))
        low, top = captured.lowest.get(str(symbol), 1), high if high < 2**31 else None
        own = [expr for expr in guards if expr.free_symbols == {symbol} and not _not_one(expr)]
        checks = [check for expr in own if (check := _compiled(expr, [symbol])) is not None]
        tried = range(low, min(low + _SPAN, (top or 2**31) + 1))
        allowed = [value for value in tried if all(_holds(check, value) for check in checks)]
        rules[symbol] = _rule(tried, allowed, low, top)
    return rules


def _rule(tried: range, allowed: list[int], low: int, top: int | None) -> SizeRule:
    if len(allowed) == len(tried) or not allowed:
        return SizeRule(low, top)
    first, last = allowed[0], allowed[-1]
    if allowed == list(range(first, last + 1)) and last < tried[-1]:
        return SizeRule(first, last)
    for step in range(1, _LARGEST_STEP + 1):
        if allowed == [value for value in tried if value >= first and (value - first) % step == 0]:
            return SizeRule(first, top, step, first % step)
    return SizeRule(low, top)


def relations(
    captured: Captured,
    symbols: Sequence[sympy.Symbol],
    rules: Mapping[sympy.Symbol, SizeRule],
    names: Mapping[Any, str],
) -> list[str]:
    """Conditions between sizes that do not follow from ``rules``, as Python on ``names``; each is needed."""
    kept: list[tuple[Callable[..., bool], list[sympy.Symbol], str]] = []
    for expr in [*captured.limits, *_guards(captured, symbols)]:
        involved = sorted(expr.free_symbols, key=str)
        if len(involved) != 2 or not isinstance(expr, sympy.core.relational.Relational):
            continue
        if any(type(part).__name__ in ("FloorDiv", "Mod", "PythonMod", "Max", "Min") for part in _parts(expr)):
            continue
        check = _compiled(expr, involved)
        if check is None:
            continue
        choices = [
            range(rules[symbol].low, rules[symbol].low + 16 * rules[symbol].step, rules[symbol].step)
            for symbol in involved
        ]
        known = [other for other, others, _ in kept if others == involved]
        if expr not in captured.limits and all(
            _holds(check, *values)
            for values in itertools.product(*choices)
            if all(_holds(other, *values) for other in known)
        ):
            continue
        kept.append((check, involved, ast.unparse(ast.fix_missing_locations(_boolean(expr, names)))))
    return [text for _, _, text in kept[:4]]


def _parts(expr: sympy.Expr) -> list[sympy.Expr]:
    return list(sympy.preorder_traversal(expr))
