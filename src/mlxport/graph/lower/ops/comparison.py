"""Comparison, logic, bits and choice."""

from __future__ import annotations

from typing import Any

from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import arithmetic, integers
from mlxport.graph.lower.ops.common import fitting, is_integer
from mlxport.graph.lower.registry import call, op


def _eq(a: Any, b: Any) -> Any:
    return a == b


COMPARISONS: dict[str, Any] = {
    "eq": _eq,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
BITWISE: dict[str, Any] = {
    "bitwise_and": lambda a, b: a & b,
    "bitwise_or": lambda a, b: a | b,
    "bitwise_xor": lambda a, b: a ^ b,
}


def _register_comparison(function: str) -> None:
    @op(f"aten.{function}.Tensor", f"aten.{function}.Scalar")
    def compare(self: Expr, other: Any) -> Expr:
        result: Expr = COMPARISONS[function](self, fitting(other, self))
        return result


def _register_bitwise(function: str) -> None:
    @op(f"aten.{function}.Tensor", f"aten.{function}.Scalar", f"aten.{function}.Scalar_Tensor")
    def bitwise(self: Any, other: Any) -> Expr:
        if not isinstance(self, Expr):  # commutative, and MLX wants the array first
            self, other = other, self
        result: Expr = BITWISE[function](self, fitting(other, self))
        return result


for _function in COMPARISONS:
    _register_comparison(_function)
for _function in BITWISE:
    _register_bitwise(_function)


@op("aten.bitwise_not.default")
def bitwise_not(self: Expr) -> Expr:
    """``~self``."""
    return ~self


@op("aten.bitwise_left_shift.Tensor", "aten.bitwise_left_shift.Tensor_Scalar", "aten.bitwise_left_shift.Scalar_Tensor",
    "aten.__lshift__.Tensor", "aten.__lshift__.Scalar")  # fmt: skip
def left_shift(self: Any, other: Any) -> Expr:
    """``self << other``; 0 where ``other`` is negative or as large as the type."""
    return _shift(integers.left_shift, self, other)


@op("aten.bitwise_right_shift.Tensor", "aten.bitwise_right_shift.Tensor_Scalar",
    "aten.bitwise_right_shift.Scalar_Tensor",
    "aten.__rshift__.Tensor", "aten.__rshift__.Scalar")  # fmt: skip
def right_shift(self: Any, other: Any) -> Expr:
    """``self >> other``; the sign remains where ``other`` is negative or as large as the type."""
    return _shift(integers.right_shift, self, other)


def _shift(function: Any, self: Any, other: Any) -> Expr:
    if isinstance(other, int) and is_integer(self) and 0 <= other < 8 * self.dtype.size:
        return self << other if function is integers.left_shift else self >> other
    like = self if isinstance(self, Expr) else other
    arrays = [x if isinstance(x, Expr) else mx.array(x, like.dtype) for x in (self, other)]
    return call(function, *arrays)


@op("aten.logical_and.default")
def logical_and(self: Expr, other: Expr) -> Expr:
    """Whether both are nonzero."""
    return self & other if self.dtype == other.dtype == mx.bool_ else mx.logical_and(self, other)


@op("aten.logical_or.default")
def logical_or(self: Expr, other: Expr) -> Expr:
    """Whether one is nonzero."""
    return self | other if self.dtype == other.dtype == mx.bool_ else mx.logical_or(self, other)


@op("aten.logical_xor.default")
def logical_xor(self: Expr, other: Expr) -> Expr:
    """Whether exactly one is nonzero."""
    if self.dtype == other.dtype == mx.bool_:
        return self ^ other
    return (self != 0) ^ (other != 0)


@op("aten.logical_not.default")
def logical_not(self: Expr) -> Expr:
    """Whether it is zero."""
    return ~self if self.dtype == mx.bool_ else mx.logical_not(self)


@op("aten.isnan.default")
def isnan(self: Expr) -> Expr:
    """Whether it is NaN."""
    return mx.isnan(self)


@op("aten.isinf.default")
def isinf(self: Expr) -> Expr:
    """Whether it is infinite."""
    return mx.isinf(self)


@op("aten.isfinite.default")
def isfinite(self: Expr) -> Expr:
    """Whether it is neither infinite nor NaN."""
    return mx.isfinite(self)


@op("aten.isposinf.default")
def isposinf(self: Expr) -> Expr:
    """Whether it is positive infinity."""
    return mx.isposinf(self)


@op("aten.isneginf.default")
def isneginf(self: Expr) -> Expr:
    """Whether it is negative infinity."""
    return mx.isneginf(self)


@op("aten.signbit.default")
def signbit(self: Expr) -> Expr:
    """Whether the sign bit is set, also that of -0.0."""
    return call(arithmetic.signbit, self)


@op("aten.isclose.default")
def isclose(self: Expr, other: Expr, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Expr:
    """``|self - other| <= atol + rtol * |other|``."""
    return mx.isclose(self, other, **_tolerances(rtol, atol, equal_nan))


def _tolerances(rtol: float, atol: float, equal_nan: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {"rtol": rtol} if rtol != 1e-5 else {}
    if atol != 1e-8:
        arguments["atol"] = atol
    return {**arguments, "equal_nan": True} if equal_nan else arguments


@op("aten.equal.default")
def equal(self: Expr, other: Expr) -> Expr:
    """Whether shapes and all values are equal: a Python bool."""
    same = mx.array_equal(self, other)
    return same.item.called(True)


@op("aten.where.self", "aten.where.ScalarSelf", "aten.where.ScalarOther", "aten.where.Scalar")
def where(condition: Expr, self: Any, other: Any) -> Expr:
    """``self`` where ``condition``, else ``other``."""
    return mx.where(condition, fitting(self, other), fitting(other, self))


@op("aten.gcd.default")
def gcd(self: Expr, other: Expr) -> Expr:
    """The greatest common divisor, by Euclid's algorithm in a fixed number of steps."""
    return call(integers.gcd, self, other)


@op("aten.lcm.default")
def lcm(self: Expr, other: Expr) -> Expr:
    """The least common multiple."""
    return call(integers.lcm, self, other)
