"""Normalisations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import norm as helper
from mlxport.graph.lower.registry import call, channels_last, op, refuse

_EPS = {mx.float16: 1.1920928955078125e-07, mx.bfloat16: 1.1920928955078125e-07, mx.float32: 1.1920928955078125e-07}


def _flattened(input: Expr, axes: int, *parameters: Expr | None) -> tuple[Any, ...]:
    """``input`` with its last ``axes`` as one, and the parameters as vectors."""
    if axes == 1:
        return (input, *parameters)
    lead = input.shape[: input.ndim - axes]
    return (
        input.reshape(*lead, -1),
        *(None if parameter is None else parameter.reshape(-1) for parameter in parameters),
    )


def _unflattened(result: Expr, input: Expr, axes: int) -> Expr:
    return result if axes == 1 else result.reshape(*input.shape)


@op("aten.layer_norm.default")
def layer_norm(
    input: Expr,
    normalized_shape: Sequence[Any],
    weight: Expr | None = None,
    bias: Expr | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Expr:
    """``mx.fast.layer_norm``, which normalises the last axis: several are made one."""
    axes = len(normalized_shape)
    x, w, b = _flattened(input, axes, weight, bias)
    return _unflattened(mx.fast.layer_norm(x, w, b, eps), input, axes)


@op("aten.native_layer_norm.default")
def native_layer_norm(
    input: Expr, normalized_shape: Sequence[Any], weight: Expr | None, bias: Expr | None, eps: float
) -> tuple[Expr, Expr, Expr]:
    """``layer_norm`` with the mean and the reciprocal deviation."""
    axes = list(range(-len(normalized_shape), 0))
    variance = input.astype(mx.float32).var(axis=axes, keepdims=True)
    return (
        layer_norm(input, normalized_shape, weight, bias, eps),
        input.mean(axis=axes, keepdims=True),
        mx.rsqrt(variance + eps),
    )


@op("aten.rms_norm.default")
def rms_norm(
    input: Expr, normalized_shape: Sequence[Any], weight: Expr | None = None, eps: float | None = None
) -> Expr:
    """``mx.fast.rms_norm``; without ``eps`` torch takes float32's for every dtype."""
    axes = len(normalized_shape)
    refuse(input.dtype == mx.complex64, "complex numbers")
    x, w = _flattened(input, axes, weight)
    return _unflattened(mx.fast.rms_norm(x, w, _EPS[input.dtype] if eps is None else eps), input, axes)


@op("aten._fused_rms_norm.default")
def fused_rms_norm(
    input: Expr, normalized_shape: Sequence[Any], weight: Expr | None, eps: float | None
) -> tuple[Expr, Expr]:
    """``rms_norm`` with the reciprocal root mean square."""
    axes = list(range(-len(normalized_shape), 0))
    squares = mx.square(input.astype(mx.float32)).mean(axis=axes, keepdims=True)
    return rms_norm(input, normalized_shape, weight, eps), mx.rsqrt(
        squares + (_EPS[input.dtype] if eps is None else eps)
    )


def _across(parameter: Expr | None, input: Expr, axis: int) -> Any:
    """A vector over the channels, shaped to broadcast against an input that has them in ``axis``."""
    if parameter is None or axis in (-1, input.ndim - 1):
        return parameter
    return parameter.reshape(-1, *[1] * (input.ndim - 1 - axis))


def _scaled(
    input: Expr, mean: Expr, variance: Expr, weight: Expr | None, bias: Expr | None, eps: float, axis: int
) -> Expr:
    """The input normalised with the statistics of each channel."""
    scale = mx.rsqrt(variance + eps)
    scale = _across(scale if weight is None else scale * weight, input, axis)
    result = (input - _across(mean, input, axis)) * scale
    return result if bias is None else result + _across(bias, input, axis)


def _statistics(input: Expr, axis: int) -> tuple[Expr, Expr]:
    axes = [other for other in range(input.ndim) if other != axis % input.ndim]
    x = input if input.dtype == mx.float32 else input.astype(mx.float32)
    return x.mean(axis=axes), x.var(axis=axes)


def _eval_or_batch(
    input: Expr,
    weight: Expr | None,
    bias: Expr | None,
    running_mean: Expr | None,
    running_var: Expr | None,
    training: bool,
    eps: float,
    axis: int,
) -> Expr:
    if training or running_mean is None or running_var is None:
        mean, variance = _statistics(input, axis)
    else:
        mean, variance = running_mean, running_var
    return _scaled(input, mean, variance, weight, bias, eps, axis)


def _batch_norm(axis: int) -> Callable[..., Expr]:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` for each channel, which are in ``axis``."""

    def batch_norm(
        input: Expr,
        weight: Expr | None,
        bias: Expr | None,
        running_mean: Expr | None,
        running_var: Expr | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Expr:
        refuse(training and running_mean is not None, "training updates the running statistics")
        return _eval_or_batch(input, weight, bias, running_mean, running_var, training, eps, axis)

    return batch_norm


channels_last("aten.batch_norm.default", plain=_batch_norm(1))(_batch_norm(-1))


@op("aten._native_batch_norm_legit_no_training.default")
def native_batch_norm_eval(
    input: Expr,
    weight: Expr | None,
    bias: Expr | None,
    running_mean: Expr,
    running_var: Expr,
    momentum: float,
    eps: float,
) -> tuple[Expr, Expr, Expr]:
    """``batch_norm`` with the running statistics; the saved ones are empty, as in torch."""
    empty = mx.zeros((0,), dtype=mx.float32)
    return _eval_or_batch(input, weight, bias, running_mean, running_var, False, eps, 1), empty, empty


def _native(input: Expr, weight: Expr | None, bias: Expr | None, eps: float) -> tuple[Expr, Expr, Expr, Expr]:
    """Result, mean, reciprocal deviation and variance of the batch."""
    mean, variance = _statistics(input, 1)
    return _scaled(input, mean, variance, weight, bias, eps, 1), mean, mx.rsqrt(variance + eps), variance


@op("aten._native_batch_norm_legit.no_stats")
def native_batch_norm_no_stats(
    input: Expr, weight: Expr | None, bias: Expr | None, training: bool, momentum: float, eps: float
) -> tuple[Expr, Expr, Expr]:
    """``batch_norm`` with the statistics of the batch, which are returned."""
    return _native(input, weight, bias, eps)[:3]


def _updated(input: Expr, mean: Expr, variance: Expr, old: tuple[Expr, Expr], momentum: float) -> tuple[Expr, Expr]:
    """The running statistics after this batch; the variance that enters them is the unbiased one."""
    count = input.size // input.shape[1]
    unbiased = variance * (count / (count - 1))
    return old[0] * (1 - momentum) + mean * momentum, old[1] * (1 - momentum) + unbiased * momentum


@op("aten._native_batch_norm_legit_functional.default")
def native_batch_norm_functional(
    input: Expr,
    weight: Expr | None,
    bias: Expr | None,
    running_mean: Expr,
    running_var: Expr,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Expr, ...]:
    """``batch_norm``, the statistics it used, and the running ones after it."""
    if not training:
        results = native_batch_norm_eval(input, weight, bias, running_mean, running_var, momentum, eps)
        return *results, running_mean, running_var
    result, mean, deviation, variance = _native(input, weight, bias, eps)
    return result, mean, deviation, *_updated(input, mean, variance, (running_mean, running_var), momentum)


@op("aten._batch_norm_with_update_functional.default")
def batch_norm_with_update(
    input: Expr,
    weight: Expr | None,
    bias: Expr | None,
    running_mean: Expr,
    running_var: Expr,
    momentum: float,
    eps: float,
) -> tuple[Expr, ...]:
    """Training ``batch_norm``; the fourth result, scratch memory of CUDA, is empty."""
    result, mean, deviation, variance = _native(input, weight, bias, eps)
    return (
        result,
        mean,
        deviation,
        mx.zeros((0,), dtype=mx.uint8),
        *_updated(input, mean, variance, (running_mean, running_var), momentum),
    )


def _group_norm_first(
    input: Expr,
    num_groups: int,
    weight: Expr | None = None,
    bias: Expr | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Expr:
    x = mx.fast.layer_norm(input.reshape(*input.shape[:1], num_groups, -1), None, None, eps).reshape(*input.shape)
    if weight is not None:
        x = x * _across(weight, input, 1)
    return x if bias is None else x + _across(bias, input, 1)


@channels_last("aten.group_norm.default", plain=_group_norm_first)
def group_norm(
    input: Expr,
    num_groups: int,
    weight: Expr | None = None,
    bias: Expr | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Expr:
    """Normalises each group of channels of a sample over all positions."""
    x = call(helper.group_norm, input, num_groups, eps)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


@op("aten.native_group_norm.default")
def native_group_norm(
    input: Expr, weight: Expr | None, bias: Expr | None, N: Any, C: Any, HxW: Any, group: int, eps: float
) -> tuple[Expr, Expr, Expr]:  # fmt: skip
    """``group_norm`` with the mean and the reciprocal deviation of each group."""
    grouped = input.reshape(N, group, -1)
    variance = grouped.astype(mx.float32).var(axis=-1)
    return (
        _group_norm_first(input, group, weight, bias, eps),
        grouped.mean(axis=-1),
        mx.rsqrt(variance + eps),
    )


@channels_last("aten.instance_norm.default")
def instance_norm(
    input: Expr,
    weight: Expr | None,
    bias: Expr | None,
    running_mean: Expr | None,
    running_var: Expr | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Expr:
    """Normalises each channel of a sample over all positions, or with running statistics."""
    refuse(use_input_stats and running_mean is not None, "training updates the running statistics")
    if not use_input_stats:
        return _eval_or_batch(input, weight, bias, running_mean, running_var, False, eps, -1)
    x = call(helper.instance_norm, input, eps)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias
