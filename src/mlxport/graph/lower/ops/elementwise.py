"""Elementwise arithmetic of real numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import arithmetic
from mlxport.graph.lower.ops.common import HALF, fitting, is_complex, is_float, is_integer
from mlxport.graph.lower.registry import call, op, refuse

# ATen functions of one argument -> the function of MLX. Integers become float32 in both.
UNARY = {
    "abs": "abs",
    "acos": "arccos",
    "acosh": "arccosh",
    "asin": "arcsin",
    "asinh": "arcsinh",
    "atan": "arctan",
    "atanh": "arctanh",
    "cos": "cos",
    "cosh": "cosh",
    "deg2rad": "radians",
    "erf": "erf",
    "exp": "exp",
    "log": "log",
    "log10": "log10",
    "log1p": "log1p",
    "log2": "log2",
    "rad2deg": "degrees",
    "reciprocal": "reciprocal",
    "rsqrt": "rsqrt",
    "sgn": "sign",
    "sign": "sign",
    "sin": "sin",
    "sinh": "sinh",
    "sqrt": "sqrt",
    "square": "square",
    "tan": "tan",
    "tanh": "tanh",
}
ROUNDING = {"ceil": "ceil", "floor": "floor", "trunc": "trunc"}


def _register_unary(function: str) -> None:
    @op(f"aten.{function}.default")
    def unary(self: Expr) -> Expr:
        return getattr(mx, UNARY[function])(self)


def _register_rounding(function: str) -> None:
    @op(f"aten.{function}.default")
    def rounding(self: Expr) -> Expr:
        return getattr(mx, ROUNDING[function])(self) if is_float(self) else self


for _function in UNARY:
    _register_unary(_function)
for _function in ROUNDING:
    _register_rounding(_function)


@op("aten.round.default", "aten.round.decimals")
def round_(self: Expr, decimals: int = 0) -> Expr:
    """``self`` to the nearest multiple of ``10 ** -decimals``, halves to even."""
    if not is_float(self):
        refuse(decimals < 0 and is_integer(self), "torch does not round integers to tens")
        return self
    return mx.round(self, decimals) if decimals else mx.round(self)


@op("aten.exp2.default")
def exp2(self: Expr) -> Expr:
    """``2 ** self``."""
    return 2.0**self


@op("aten.expm1.default")
def expm1(self: Expr) -> Expr:
    """``exp(self) - 1``."""
    return mx.exp(self) - 1 if is_complex(self) else mx.expm1(self)


@op("aten.sigmoid.default", "aten.special_expit.default")
def sigmoid(self: Expr) -> Expr:
    """``1 / (1 + exp(-self))``."""
    return 1 / (1 + mx.exp(-self)) if is_complex(self) else mx.sigmoid(self)


@op("aten.neg.default")
def neg(self: Expr) -> Expr:
    """``-self``."""
    return -self


@op("aten.positive.default")
def positive(self: Expr) -> Expr:
    """``self``."""
    return self


@op("aten.frac.default")
def frac(self: Expr) -> Expr:
    """``self - trunc(self)``."""
    return self - mx.trunc(self)


@op("aten.add.Tensor", "aten.add.Scalar")
def add(self: Expr, other: Any, alpha: Any = 1) -> Expr:
    """``self + alpha * other``."""
    return self + (fitting(other, self) if alpha == 1 else _scaled(other, alpha, self))


@op("aten.sub.Tensor", "aten.sub.Scalar")
def sub(self: Expr, other: Any, alpha: Any = 1) -> Expr:
    """``self - alpha * other``."""
    return self - (fitting(other, self) if alpha == 1 else _scaled(other, alpha, self))


@op("aten.rsub.Tensor", "aten.rsub.Scalar")
def rsub(self: Expr, other: Any, alpha: Any = 1) -> Expr:
    """``other - alpha * self``."""
    return fitting(other, self) - (self if alpha == 1 else fitting(alpha, self) * self)


def _scaled(other: Any, alpha: Any, self: Expr) -> Any:
    if isinstance(other, Expr):
        return fitting(alpha, other) * other
    return fitting(alpha * other, self)


@op("aten.mul.Tensor", "aten.mul.Scalar")
def mul(self: Expr, other: Any) -> Expr:
    """``self * other``."""
    return self * fitting(other, self)


@op("aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor", "aten.true_divide.Scalar")
def div(self: Expr, other: Any) -> Expr:
    """``self / other``."""
    return self / fitting(other, self)


@op("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(self: Expr, other: Any, rounding_mode: str | None = None) -> Expr:
    """``self / other``, rounded down ("floor"), toward zero ("trunc") or not."""
    if rounding_mode is None:
        return div(self, other)
    if rounding_mode == "floor":
        return floor_divide(self, other)
    if is_float(self) or is_float(other) or isinstance(other, float):
        return mx.trunc(self / other)
    return call(arithmetic.trunc_divide, self, fitting(other, self))


@op("aten.floor_divide.default", "aten.floor_divide.Scalar")
def floor_divide(self: Expr, other: Any) -> Expr:
    """``floor(self / other)``, of floats by way of the exact remainder."""
    if is_float(self) or is_float(other) or isinstance(other, float):
        if isinstance(other, int | float) and float(other).is_integer():
            return self // other
        return call(arithmetic.floor_divide, self, other)
    return self // fitting(other, self)


@op("aten.remainder.Tensor", "aten.remainder.Scalar", "aten.remainder.Scalar_Tensor")
def remainder(self: Any, other: Any) -> Expr:
    """``self - other * floor(self / other)``: the sign is that of ``other``."""
    return fitting(self, other) % fitting(other, self)


@op("aten.fmod.Tensor", "aten.fmod.Scalar")
def fmod(self: Expr, other: Any) -> Expr:
    """``self - other * trunc(self / other)``: the sign is that of ``self``."""
    return call(arithmetic.fmod, self, fitting(other, self))


@op("aten.pow.Tensor_Tensor", "aten.pow.Tensor_Scalar")
def power(self: Expr, exponent: Any) -> Expr:
    """``self ** exponent``."""
    if isinstance(exponent, int | float) and not isinstance(exponent, bool):
        return _power_scalar(self, exponent)
    if is_integer(self) and is_integer(exponent):
        return call(arithmetic.integer_power, self, exponent)
    return self**exponent


def _power_scalar(self: Expr, exponent: int | float) -> Expr:
    special: dict[float, Callable[[Expr], Expr]] = {
        0.5: mx.sqrt,
        -0.5: mx.rsqrt,
        -1: mx.reciprocal,
        1: lambda x: x,
        2: mx.square,
    }
    if exponent in special and (exponent > 0 or not is_integer(self)):
        return special[exponent](self)
    if is_complex(self) and isinstance(exponent, int) and 0 < exponent <= 4:
        return self * mx.square(self) if exponent == 3 else mx.square(mx.square(self))
    return self**exponent


@op("aten.pow.Scalar")
def scalar_power(self: Any, exponent: Expr) -> Expr:
    """``self ** exponent`` of a number and a tensor."""
    if is_integer(exponent) and isinstance(self, int):
        return call(arithmetic.integer_power, mx.array(fitting(self, exponent), exponent.dtype), exponent)
    return self**exponent


@op("aten.float_power.Tensor_Tensor", "aten.float_power.Tensor_Scalar", "aten.float_power.Scalar")
def float_power(self: Any, exponent: Any) -> Expr:
    """``self ** exponent`` in float32 (torch: float64)."""
    widened = [
        x.astype(mx.float32) if isinstance(x, Expr) and not is_complex(x) and x.dtype != mx.float32 else x
        for x in (self, exponent)
    ]
    if isinstance(widened[0], Expr):
        return power(widened[0], float(exponent) if isinstance(exponent, int) else widened[1])
    return float(self) ** widened[1] if isinstance(self, int) else self ** widened[1]


@op("aten.maximum.default")
def maximum(self: Expr, other: Expr) -> Expr:
    """The larger of two, NaN if either is."""
    return mx.maximum(self, other)


@op("aten.minimum.default")
def minimum(self: Expr, other: Expr) -> Expr:
    """The smaller of two, NaN if either is."""
    return mx.minimum(self, other)


@op("aten.fmax.default")
def fmax(self: Expr, other: Expr) -> Expr:
    """The larger of two, the other one if one is NaN."""
    return call(arithmetic.fmax, self, other) if is_float(self) or is_float(other) else mx.maximum(self, other)


@op("aten.fmin.default")
def fmin(self: Expr, other: Expr) -> Expr:
    """The smaller of two, the other one if one is NaN."""
    return call(arithmetic.fmin, self, other) if is_float(self) or is_float(other) else mx.minimum(self, other)


@op("aten.clamp.default", "aten.clamp.Tensor", "aten.clip.default", "aten.clip.Tensor")
def clamp(self: Expr, min: Any = None, max: Any = None) -> Expr:  # noqa: A002
    """``self`` between ``min`` and ``max``; ``max`` where they cross."""
    if max is None:
        return mx.maximum(self, min)
    if min is None:
        return mx.minimum(self, max)
    return mx.clip(self, min, max)


@op("aten.clamp_min.default", "aten.clamp_min.Tensor")
def clamp_min(self: Expr, min: Any) -> Expr:  # noqa: A002
    """``self``, at least ``min``."""
    return mx.maximum(self, min)


@op("aten.clamp_max.default", "aten.clamp_max.Tensor")
def clamp_max(self: Expr, max: Any) -> Expr:  # noqa: A002
    """``self``, at most ``max``."""
    return mx.minimum(self, max)


@op("aten.addcmul.default")
def addcmul(self: Expr, tensor1: Expr, tensor2: Expr, value: Any = 1) -> Expr:
    """``self + value * tensor1 * tensor2``."""
    return self + (tensor1 * tensor2 if value == 1 else value * tensor1 * tensor2)


@op("aten.addcdiv.default")
def addcdiv(self: Expr, tensor1: Expr, tensor2: Expr, value: Any = 1) -> Expr:
    """``self + value * tensor1 / tensor2``."""
    return self + (tensor1 / tensor2 if value == 1 else value * tensor1 / tensor2)


@op("aten.lerp.Tensor", "aten.lerp.Scalar")
def lerp(self: Expr, end: Expr, weight: Any) -> Expr:
    """``self + weight * (end - self)``."""
    return self + weight * (end - self)


@op("aten.atan2.default")
def atan2(self: Expr, other: Expr) -> Expr:
    """The angle of the points (other, self)."""
    return mx.arctan2(self, other)


@op("aten.hypot.default")
def hypot(self: Expr, other: Expr) -> Expr:
    """``sqrt(self ** 2 + other ** 2)`` without overflow."""
    return call(arithmetic.hypot, self, other)


@op("aten.copysign.Tensor", "aten.copysign.Scalar")
def copysign(self: Expr, other: Any) -> Expr:
    """The magnitude of ``self`` with the sign of ``other``, zeros included."""
    other = other if isinstance(other, Expr) else mx.array(float(other))
    return call(arithmetic.copysign, self, other)


@op("aten.logaddexp.default")
def logaddexp(self: Expr, other: Expr) -> Expr:
    """``log(exp(self) + exp(other))``."""
    return mx.logaddexp(self, other)


@op("aten.logaddexp2.default")
def logaddexp2(self: Expr, other: Expr) -> Expr:
    """``log2(2 ** self + 2 ** other)``."""
    return call(arithmetic.logaddexp2, self, other)


@op("aten.ldexp.Tensor")
def ldexp(self: Expr, other: Expr) -> Expr:
    """``self * 2 ** other``."""
    return self * 2.0**other


@op("aten.nan_to_num.default")
def nan_to_num(self: Expr, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Expr:
    """NaN and infinities replaced, by 0 and the largest finite numbers unless told."""
    if not is_float(self):
        return self
    numbers = {"nan": nan or None, "posinf": posinf, "neginf": neginf}
    return mx.nan_to_num(self, **{key: item for key, item in numbers.items() if item is not None})


@op("aten.heaviside.default")
def heaviside(self: Expr, values: Expr) -> Expr:
    """0 where negative, 1 where positive, ``values`` at 0."""
    return call(arithmetic.heaviside, self, values)


@op("aten.frexp.Tensor")
def frexp(self: Expr) -> Any:
    """Mantissa in [0.5, 1) and exponent: ``self = mantissa * 2 ** exponent``."""
    refuse(self.dtype in HALF, "frexp of half precision")
    return call(arithmetic.frexp, self)


@op("aten.nextafter.default")
def nextafter(self: Expr, other: Expr) -> Expr:
    """The next float32 after ``self`` in the direction of ``other``."""
    refuse(self.dtype in HALF, "nextafter of half precision")
    return call(arithmetic.nextafter, self, other)
