"""Functions called as what they compute: those of torch's own dialects that are made of others, and some that ask.

``prims`` has its meaning beside it. What torch has for ``quantized_decomposed`` reads scales as numbers, and of fake
quantization torch.export knows no shapes: both are spelled out here, for scales and zero points that are tensors. Ops
with two kernels are what torch's decompositions make of them. All are taken apart while the forward runs: that some
give views stops a later decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mlxport.graph.lower.registry import LOWERINGS

__all__ = ["SpelledOut"]


class SpelledOut(TorchFunctionMode):  # type: ignore[misc]
    """While it is entered, such calls are those of what they are made of."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Make a call, or those that it stands for."""
        meaning = _NAMED.get(_name(func)) or _of_dialect(func) or func
        return meaning(*args, **(kwargs or {}))


def _name(func: Any) -> str:
    """``fake_quantize_per_tensor_affine`` for the function of torch and for the operator."""
    if isinstance(func, torch._ops.OpOverload):
        func = func.overloadpacket
    name = getattr(func, "__name__", "")
    return name if isinstance(name, str) else ""


def _of_dialect(func: Any) -> Callable[..., Any] | None:
    """What an operator of a dialect is made of; None for others."""
    if isinstance(func, torch._ops.OpOverloadPacket):
        qualified = func._qualified_op_name.split("::")
        namespace, func = qualified[0], getattr(func, func.overloads()[0])
    elif isinstance(func, torch._ops.OpOverload):
        namespace = func.namespace
    else:
        return None
    if namespace == "aten":
        return _of_two_kernels(func)
    if namespace == "prims":
        return getattr(func, "impl_aten", None)
    if namespace != "quantized_decomposed":
        return None
    from torch.ao.quantization.fx import _decomposed  # which is loaded: the operator is there

    return _QUANTIZERS.get(_name(func)) or getattr(_decomposed, _name(func), None)


def _of_two_kernels(func: torch._ops.OpOverload) -> Callable[..., Any] | None:
    """What torch takes an op apart into that has a composite kernel and one of the CPU; None for others.

    ``run_decompositions`` replaces the composite kernel of such an op (``silu_backward``), and calls that of the CPU.
    """
    rule = torch._decomp.decomposition_table.get(func)
    if rule is None or str(func) in LOWERINGS:
        return None
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return rule if all(has(func.name(), key) for key in ("CompositeImplicitAutograd", "CPU")) else None


def _quantized(x: torch.Tensor, scale: Any, zero_point: Any, low: Any, high: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.clamp(torch.round(x * (1.0 / scale)) + zero_point, low, high).to(dtype)


def _rounded_last(
    x: torch.Tensor, scale: Any, zero_point: Any, low: Any, high: Any, dtype: torch.dtype
) -> torch.Tensor:
    return torch.clamp(torch.round(x * (1.0 / scale) + zero_point), low, high).to(dtype)


def _restored(x: torch.Tensor, scale: Any, zero_point: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    return ((x.to(torch.float32) - (0 if zero_point is None else zero_point)) * scale).to(dtype or torch.float32)


def _quantize_channels(
    x: torch.Tensor, scales: Any, zero_points: Any, axis: int, quant_min: int, quant_max: int, dtype: torch.dtype
) -> torch.Tensor:
    return _quantized(x, _along(x, scales, axis), _along(x, zero_points, axis), quant_min, quant_max, dtype)


def _restore_channels(
    x: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    zero_points = None if zero_points is None else _along(x, zero_points, axis)
    return _restored(x, _along(x, scales, axis), zero_points, out_dtype)


def _grouped(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return values.repeat_interleave(x.shape[-1] // values.shape[-1], dim=-1)


def _bounds(x: torch.Tensor, dim: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest number, or 0 if it lies beyond."""
    least, largest = (x.amin(), x.amax()) if dim is None else (x.amin(dim, keepdim=True), x.amax(dim, keepdim=True))
    return least.clamp(max=0.0), largest.clamp(min=0.0)


def _choose(x: torch.Tensor, quant_min: int, quant_max: int, eps: float, dtype: torch.dtype) -> tuple[Any, Any]:
    least, largest = _bounds(x)
    scale = ((largest - least) / float(quant_max - quant_min)).clamp(min=eps)
    zero_point = (quant_min - torch.round(least / scale).to(torch.int)).clamp(quant_min, quant_max)
    return scale.to(torch.float64).reshape(1), zero_point.to(torch.int64).reshape(1)


def _choose_symmetric(
    x: torch.Tensor, quant_min: int, quant_max: int, eps: float, dtype: torch.dtype
) -> tuple[Any, Any]:
    least, largest = _bounds(x)
    scale = (torch.maximum(-least, largest) / (float(quant_max - quant_min) / 2)).clamp(min=eps)
    middle = 128 if dtype == torch.uint8 else 0
    return scale.to(torch.float64).reshape(1), torch.full_like(scale, middle, dtype=torch.int64).reshape(1)


_QUANTIZERS: Mapping[str, Callable[..., Any]] = {
    "quantize_per_tensor": _quantized,
    "dequantize_per_tensor": lambda x, scale, zero, low, high, dtype, *, out_dtype=None: _restored(
        x, scale, zero, out_dtype
    ),
    "quantize_per_channel": _quantize_channels,
    "dequantize_per_channel": _restore_channels,
    "quantize_per_token": _rounded_last,
    "dequantize_per_token": lambda x, scales, zeros, low, high, dtype, out: _restored(x, scales, zeros, out),
    "quantize_per_channel_group": lambda x, scales, zeros, low, high, dtype, size=128: _rounded_last(
        x, _grouped(x, scales), _grouped(x, zeros), low, high, dtype
    ),
    "dequantize_per_channel_group": lambda x, scales, zeros, low, high, dtype, size=128, out=torch.float32: _restored(
        x, _grouped(x, scales), None if zeros is None else _grouped(x, zeros), out
    ),
    "fake_quant_per_channel": lambda x, scales, zeros, axis, low, high: _per_channel(x, scales, zeros, axis, low, high),
    "choose_qparams": _choose,
    "choose_qparams_symmetric": _choose_symmetric,
}


def _steps(x: torch.Tensor, scale: Any, zero_point: Any, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` rounded to steps of ``scale`` from ``low`` to ``high``, and where it lies between these."""
    steps = torch.round(x * (1 / scale)) + zero_point
    return (steps.clamp(low, high) - zero_point) * scale, (steps >= low) & (steps <= high)


def _per_tensor(x: torch.Tensor, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> torch.Tensor:
    return _steps(x, scale, zero_point, quant_min, quant_max)[0]


def _along(x: torch.Tensor, values: torch.Tensor, axis: int) -> torch.Tensor:
    """A number for each place of an axis, shaped to broadcast with ``x``."""
    return values.reshape([-1 if index == axis % x.ndim else 1 for index in range(x.ndim)])


def _per_channel(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int, quant_min: int, quant_max: int
) -> torch.Tensor:
    return _channel_mask(x, scale, zero_point, axis, quant_min, quant_max)[0]


def _channel_mask(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int, quant_min: int, quant_max: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return _steps(x, _along(x, scale, axis), _along(x, zero_point, axis), quant_min, quant_max)


def _if_enabled(
    x: torch.Tensor, scale: Any, zero_point: Any, enabled: torch.Tensor, quant_min: int, quant_max: int
) -> tuple[torch.Tensor, torch.Tensor]:
    made, mask = _steps(x, scale, zero_point, quant_min, quant_max)
    return torch.where(enabled != 0, made, x), mask | (enabled == 0)


def _learnable(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1,
) -> torch.Tensor:
    return _per_tensor(x, scale, zero_point.round().clamp(quant_min, quant_max), quant_min, quant_max)


def _learnable_channel(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    axis: int,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1,
) -> torch.Tensor:
    return _per_channel(x, scale, zero_point.round().clamp(quant_min, quant_max), axis, quant_min, quant_max)


def _gaussian_nll_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    var: torch.Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> torch.Tensor:
    """As torch has it, which first looks whether a variance is negative."""
    spread = torch.as_tensor(var, dtype=input.dtype)
    if spread.ndim and spread.ndim == input.ndim - 1:
        spread = spread.unsqueeze(-1)
    spread = spread.clamp(min=eps)
    loss = 0.5 * (torch.log(spread) + (input - target) ** 2 / spread) + (0.5 * math.log(2 * math.pi) if full else 0)
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


_NAMED: Mapping[str, Callable[..., Any]] = {
    "gaussian_nll_loss": _gaussian_nll_loss,
    "fake_quantize_per_tensor_affine": _per_tensor,
    "fake_quantize_per_tensor_affine_cachemask": _steps,
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams": _if_enabled,
    "fake_quantize_per_channel_affine": _per_channel,
    "fake_quantize_per_channel_affine_cachemask": _channel_mask,
    "_fake_quantize_learnable_per_tensor_affine": _learnable,
    "_fake_quantize_learnable_per_channel_affine": _learnable_channel,
}
