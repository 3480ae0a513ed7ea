"""Activation functions: ``mlx.nn``'s where they compute what torch computes, composed otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxport.graph.lower import fused_ops as targets
from mlxport.graph.lower.expr import Expr, mx, nn
from mlxport.graph.lower.helpers import activations as helper
from mlxport.graph.lower.registry import call, channels_last, fused, op, refuse

UNARY = {
    "aten.relu.default": nn.relu,
    "aten.relu6.default": nn.relu6,
    "aten.silu.default": nn.silu,
    "aten.mish.default": nn.mish,
    "aten.hardswish.default": nn.hardswish,
    "aten.log_sigmoid.default": nn.log_sigmoid,
}

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # mlx.nn.selu rounds both to six digits


def _unary(function: Callable[[Expr], Expr]) -> Callable[[Expr], Expr]:
    def lower(self: Expr) -> Expr:
        return function(self)

    return lower


for _key, _function in UNARY.items():
    op(_key)(_unary(_function))


@op("aten.gelu.default")
def gelu(self: Expr, approximate: str = "none") -> Expr:
    """``nn.gelu``, or its tanh approximation."""
    return nn.gelu_approx(self) if approximate == "tanh" else nn.gelu(self)


@fused(targets.quick_gelu)
def quick_gelu(x: Expr) -> Expr:
    """``nn.gelu_fast_approx``."""
    return nn.gelu_fast_approx(x)


@op("aten.leaky_relu.default")
def leaky_relu(self: Expr, negative_slope: float = 0.01) -> Expr:
    """``max(slope * x, x)``, which holds for slopes from 0 to 1 only."""
    if not 0 < negative_slope <= 1:
        return mx.where(self > 0, self, self * negative_slope)
    return nn.leaky_relu(self) if negative_slope == 0.01 else nn.leaky_relu(self, negative_slope)


@op("aten.elu.default")
def elu(self: Expr, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Expr:
    """``x`` above 0 and ``alpha * (exp(input_scale * x) - 1)`` below, times ``scale``."""
    if input_scale != 1:
        result = mx.where(self > 0, self, alpha * mx.expm1(input_scale * self))
    else:
        result = nn.elu(self) if alpha == 1 else nn.elu(self, alpha)
    return result if scale == 1 else result * scale


@op("aten.selu.default")
def selu(self: Expr) -> Expr:
    """``elu`` with the two constants of self-normalising networks."""
    return nn.elu(self, _SELU_ALPHA) * _SELU_SCALE


@op("aten.celu.default")
def celu(self: Expr, alpha: float = 1.0) -> Expr:
    """``max(0, x) + min(0, alpha * (exp(x / alpha) - 1))``."""
    return nn.celu(self) if alpha == 1 else nn.celu(self, alpha)


@op("aten.softplus.default")
def softplus(self: Expr, beta: float = 1, threshold: float = 20) -> Expr:
    """``log(1 + exp(beta * x)) / beta``, the identity above ``threshold``."""
    if beta == 1 and threshold >= 17:  # exp(-17) is half a unit in the last place of float32: nothing to switch off
        return nn.softplus(self)
    return call(helper.softplus_with_threshold, self, beta, threshold)


@op("aten.hardtanh.default")
def hardtanh(self: Expr, min_val: float = -1, max_val: float = 1) -> Expr:
    """``x`` clipped to the two bounds."""
    return mx.clip(self, min_val, max_val)


@op("aten.hardsigmoid.default")
def hardsigmoid(self: Expr) -> Expr:
    """``min(max(x + 3, 0), 6) / 6``."""
    return mx.clip(self + 3, 0, 6) / 6


@op("aten.hardshrink.default")
def hardshrink(self: Expr, lambd: float = 0.5) -> Expr:
    """``x`` outside ``[-lambd, lambd]``, else 0; NaN stays."""
    return mx.where(mx.abs(self) <= lambd, 0, self)


@op("aten.softshrink.default")
def softshrink(self: Expr, lambd: float = 0.5) -> Expr:
    """``x`` moved by ``lambd`` towards 0 and stopped there."""
    return self - mx.clip(self, -lambd, lambd)


@op("aten.threshold.default")
def threshold(self: Expr, threshold: float, value: float) -> Expr:
    """``x`` above ``threshold``, else ``value``; NaN stays."""
    return mx.where(self <= threshold, value, self)


@op("aten.glu.default")
def glu(self: Expr, dim: int = -1) -> Expr:
    """The first half along ``dim`` times the sigmoid of the second."""
    return nn.glu(self) if dim in (-1, self.ndim - 1) else nn.glu(self, axis=dim)


@op("aten.log_sigmoid_forward.default")
def log_sigmoid_forward(self: Expr) -> tuple[Expr, None]:
    """``log(sigmoid(x))``; the other result serves the backward pass."""
    return nn.log_sigmoid(self), None


@op("aten.rrelu.default", "aten.rrelu_with_noise.default", "aten.rrelu_with_noise_functional.default")
def rrelu(self: Expr, lower: float, upper: float, training: bool, noise: Expr | None = None) -> Any:
    """A leaky ReLU with the mean of the two slopes; random slopes (``training``) are refused."""
    refuse(training, "training: the slopes are random")
    return leaky_relu(self, (lower + upper) / 2)


def _prelu_channels_first(self: Expr, weight: Expr) -> Expr:
    if self.ndim > 2 and weight.ndim and weight.value.size > 1:
        weight = weight.reshape(-1, *[1] * (self.ndim - 2))
    elif self.ndim == 0:
        weight = weight.reshape(())
    return nn.prelu(self, weight)


@channels_last("aten.prelu.default", inputs=("self",), plain=_prelu_channels_first)
def prelu(self: Expr, weight: Expr) -> Expr:
    """``max(0, x) + weight * min(0, x)`` with a slope for each channel."""
    return nn.prelu(self, weight)


@op("aten._prelu_kernel.default")
def prelu_kernel(self: Expr, weight: Expr) -> Expr:
    """``nn.prelu`` with slopes that broadcast."""
    return nn.prelu(self, weight)
