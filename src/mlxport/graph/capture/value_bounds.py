"""How small and how large the integers of a captured graph can be, as expressions of the inputs' sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.traits import View, traits_of

__all__ = ["Bounds", "ValueBounds", "size_of"]


@dataclass(frozen=True)
class Bounds:
    """The least and the largest value, sizes being whole numbers from 1 on."""

    low: sympy.Expr
    high: sympy.Expr

    @classmethod
    def of(cls, low: Any, high: Any) -> Bounds:
        """Bounds of numbers."""
        return cls(sympy.Integer(low), sympy.Integer(high))


def size_of(item: Any) -> sympy.Expr | None:
    """A number or a size of the graph as an expression; None for what is neither."""
    value = item.meta.get("val") if isinstance(item, Node) else item
    if isinstance(value, torch.SymInt):
        return value.node.expr
    return sympy.Integer(value) if isinstance(value, int) else None


class ValueBounds:
    """Bounds of a program's values, each found once; None where nothing is known."""

    def __init__(self, captured: Captured) -> None:
        self._captured = captured
        self._found: dict[Node, Bounds | None] = {}

    def __call__(self, item: Any) -> Bounds | None:
        """Bounds of a value of the graph, of a number or of a size."""
        if not isinstance(item, Node) or not isinstance(item.meta.get("val"), torch.Tensor):
            size = size_of(item)
            return None if size is None else Bounds(size, size)
        if item not in self._found:
            self._found[item] = self._bounds(item)
        return self._found[item]

    def _bounds(self, node: Node) -> Bounds | None:
        if node.meta["val"].dtype is torch.bool:
            return Bounds.of(0, 1)
        if node in self._captured.weights:
            return _stored(self._captured.state[self._captured.weights[node]])
        kind = traits_of(node)
        if kind.cast or kind.view not in (None, View.REINTERPRETED) or kind.name in _SAME:
            return self(node.args[0])
        rule = _RULES.get(kind.name)
        return rule(self, node) if rule is not None else None


def _stored(tensor: torch.Tensor) -> Bounds | None:
    if tensor.device.type == "meta" or tensor.dtype.is_floating_point or tensor.dtype.is_complex or not tensor.numel():
        return None
    return Bounds.of(int(tensor.min()), int(tensor.max()))


# Ops that give some of their first argument's values.
_SAME = frozenset(
    "clone alias detach flip roll repeat repeat_interleave index_select gather index contiguous lift_fresh_copy".split()
)


def _add(bounds: ValueBounds, node: Node) -> Bounds | None:
    a, b, scale = bounds(node.args[0]), bounds(node.args[1]), node.kwargs.get("alpha", 1)
    return Bounds(a.low + b.low, a.high + b.high) if a and b and scale == 1 else None


def _sub(bounds: ValueBounds, node: Node) -> Bounds | None:
    a, b, scale = bounds(node.args[0]), bounds(node.args[1]), node.kwargs.get("alpha", 1)
    return Bounds(a.low - b.high, a.high - b.low) if a and b and scale == 1 else None


def _mul(bounds: ValueBounds, node: Node) -> Bounds | None:
    a, b = bounds(node.args[0]), bounds(node.args[1])
    if a is None or b is None or not (_not_negative(a.low) and _not_negative(b.low)):
        return None
    return Bounds(a.low * b.low, a.high * b.high)


def _cumsum(bounds: ValueBounds, node: Node) -> Bounds | None:
    a = bounds(node.args[0])
    count = size_of(node.args[0].meta["val"].shape[node.args[1]])  # type: ignore[union-attr, index]
    return Bounds(a.low, a.high * count) if a and count is not None and _not_negative(a.low) else None


def _arange(bounds: ValueBounds, node: Node) -> Bounds | None:
    numbers = [number for item in node.args if (number := size_of(item)) is not None]
    if not numbers or len(numbers) < len(node.args):
        return None
    first, *rest = numbers
    start, end, step = (sympy.Integer(0), first, sympy.Integer(1)) if not rest else (first, *rest, sympy.Integer(1))[:3]
    return Bounds(start, end - 1) if step.is_positive else None


def _clamp(bounds: ValueBounds, node: Node) -> Bounds | None:
    a = bounds(node.args[0])
    least, most = (bounds(item) if item is not None else None for item in (*node.args[1:3], None, None)[:2])
    low = least.low if least else a.low if a else None
    high = most.high if most else a.high if a else None
    if least and a and not most:
        high = sympy.Max(a.high, least.high)
    return Bounds(low, high) if low is not None and high is not None else None


def _extreme(pick: Callable[..., sympy.Expr]) -> Callable[[ValueBounds, Node], Bounds | None]:
    """Of the smaller, or the larger, of two values."""

    def rule(bounds: ValueBounds, node: Node) -> Bounds | None:
        a, b = bounds(node.args[0]), bounds(node.args[1])
        return Bounds(pick(a.low, b.low), pick(a.high, b.high)) if a and b else None

    return rule


def _either(bounds: ValueBounds, items: Any) -> Bounds | None:
    found = [bounds(item) for item in items]
    if not found or any(item is None for item in found):
        return None
    return Bounds(sympy.Min(*(f.low for f in found if f)), sympy.Max(*(f.high for f in found if f)))


def _remainder(bounds: ValueBounds, node: Node) -> Bounds | None:
    count = size_of(node.args[1])
    return Bounds(sympy.Integer(0), count - 1) if count is not None and count.is_positive else None


def _filled(bounds: ValueBounds, node: Node) -> Bounds | None:
    return bounds(node.args[1])


def _place(bounds: ValueBounds, node: Node) -> Bounds | None:
    """A place along an axis, as argmax gives it."""
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    axis = node.args[1] if len(node.args) > 1 else None
    count = size_of(shape[axis]) if isinstance(axis, int) and shape else None
    return None if count is None else Bounds(sympy.Integer(0), count - 1)


def _not_negative(expr: sympy.Expr) -> bool:
    return bool(expr.is_nonnegative)


_RULES: Mapping[str, Callable[[ValueBounds, Node], Bounds | None]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "cumsum": _cumsum,
    "arange": _arange,
    "clamp": _clamp,
    "minimum": _extreme(sympy.Min),
    "maximum": _extreme(sympy.Max),
    "remainder": _remainder,
    "argmax": _place,
    "argmin": _place,
    "full": _filled,
    "full_like": _filled,
    "zeros": lambda bounds, node: Bounds.of(0, 0),
    "zeros_like": lambda bounds, node: Bounds.of(0, 0),
    "ones": lambda bounds, node: Bounds.of(1, 1),
    "ones_like": lambda bounds, node: Bounds.of(1, 1),
    "cat": lambda bounds, node: _either(bounds, node.args[0]),
    "stack": lambda bounds, node: _either(bounds, node.args[0]),
    "where": lambda bounds, node: _either(bounds, node.args[1:]),
    "masked_fill": lambda bounds, node: _either(bounds, (node.args[0], node.args[2])),
}
