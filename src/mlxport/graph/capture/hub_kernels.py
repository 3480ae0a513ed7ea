"""The functions that transformers leaves to kernels from the hub, captured whole.

Its modeling files look them up as functions of their own, by the names that the kernels have; what these compute around
the scan itself (biases, activations, gates) stays in the graph, where it is fused as any other op.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import rms_norm, silu, softplus

from mlxport.graph.capture import state_ops

__all__ = ["has_kernels", "whole_kernels"]

_KERNELS: dict[str, Callable[..., Any]] = {}
_L2_EPSILON = 1e-6  # of the kernels that normalise queries and keys


@contextmanager
def whole_kernels(model: torch.nn.Module) -> Iterator[None]:
    """Within, the scans and convolutions of the model's modeling files are one op each."""
    found = _found(model)
    for scope, name, function in found:
        scope[name] = _whole(function)
    try:
        yield
    finally:
        for scope, name, function in found:
            scope[name] = function


def has_kernels(model: torch.nn.Module) -> bool:
    """Whether there are such functions in the model's modeling files."""
    return bool(_found(model))


def _found(model: torch.nn.Module) -> list[tuple[dict[str, Any], str, Callable[..., Any]]]:
    """The functions with their names, and where these are looked up."""
    files = {type(module).__module__ for module in model.modules()}
    return [
        (vars(sys.modules[file]), name, function)
        for file in files
        for name, function in vars(sys.modules[file]).items()
        if _kernel(function) in _KERNELS
    ]


def _whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """The op in the place of a function of transformers; arguments for the kernel alone are left out, as there."""
    known = inspect.signature(function).parameters
    whole = _KERNELS[_kernel(function)]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return whole(*args, **{name: item for name, item in kwargs.items() if name in known})

    return call


def _kernel(function: Any) -> str:
    """The name of the kernel that a function of transformers stands in for, or chooses; empty where there is none."""
    if not inspect.isfunction(function):
        return ""
    if not hasattr(function, "__wrapped__"):
        return function.__name__
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    return str(cells["func_name"].cell_contents) if "func_name" in cells else ""


def _stands_for(*kernels: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for kernel in kernels:
            if kernel in _KERNELS:
                raise ValueError(f"{kernel} is registered twice")
            _KERNELS[kernel] = function
        return function

    return register


@_stands_for("causal_conv1d_fn")
def _causal_conv1d(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    from transformers.activations import ACT2FN

    result = state_ops.causal_conv1d(hidden_states.to(weight.dtype), weight, bias)
    if activation is not None:
        result = ACT2FN[activation](result)
    return result.to(hidden_states.dtype)


@_stands_for("selective_scan_fn")
def _selective_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    use_mambapy: bool = False,  # these two are ways of computing the same
    use_associative_scan: bool = False,
) -> Any:
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[..., None]
    if delta_softplus:
        dt = softplus(dt)
    result, state = state_ops.selective_scan(hidden_states, dt, A, B, C, None)
    if D is not None:
        result = result + hidden_states * D[None, :, None]
    if z is not None:
        result = result * silu(z)
    return (result, state) if return_last_state else result


@_stands_for("mamba_chunk_scan_combined")
def _state_space(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
) -> Any:
    if not dt_softplus or D is None or dt_bias is None:
        raise NotImplementedError("mamba_chunk_scan_combined is called without softplus, D or a bias of the steps")
    low, high = map(float, dt_limit)
    made, state = state_ops.state_space(hidden_states, dt, A, B, C, D, dt_bias, low, high, initial_states)
    return (made.float(), state) if return_final_states else made.float()


@_stands_for("rwkv_linear_attention")
def _wkv(
    time_decay: torch.Tensor,
    time_first: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    state: Any = None,
    return_state: bool = False,
) -> Any:
    before = [None] * 3 if state is None else state
    result, *after = state_ops.wkv(time_decay, time_first, key, value, *before)
    return result, after if return_state or state is not None else None


@_stands_for("chunk_gated_delta_rule", "chunk_kda")
def _gated_delta(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    chunk_size: int = 64,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
) -> Any:
    width, dtype = query.shape[-1], query.dtype
    query, key = query.float(), key.float()
    if use_qk_l2norm_in_kernel:  # by what MLX has in one, which divides by the root of the mean
        query, key = (rms_norm(item, (width,), eps=_L2_EPSILON / width) * width**-0.5 for item in (query, key))
    result, state = state_ops.gated_delta(query * width**-0.5, key, value, g.float(), beta, initial_state)
    return result.to(dtype), state if output_final_state else None
