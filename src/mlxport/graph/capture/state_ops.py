"""Operators on what a model remembers in the place of keys and values: convolutions and scans, each whole as one node.

A language model's loop over its tokens would be traced token by token. As an operator it stays one node, which the pass
``rewrite.caches`` puts on stored states. Each has its meaning in torch beside it, token by token; no step calls that.
"""

from __future__ import annotations

from typing import Any

import torch

from mlxport.graph.lower.whole_operator import whole_operator

__all__ = ["all_tokens", "causal_conv1d", "gated_delta", "one_token", "selective_scan", "state_space", "wkv"]


def _causal_conv1d_sizes(x: Any, weight: Any, bias: Any) -> Any:
    return torch.empty_like(x)


@whole_operator("(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _causal_conv1d_sizes)
def causal_conv1d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Each channel of ``x`` [B, C, L] convolved with its own row of ``weight`` [C, width], zeros before the first."""
    padded = torch.nn.functional.pad(x, (weight.shape[-1] - 1, 0))
    return torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=weight.shape[0])


def _selective_scan_sizes(x: Any, dt: Any, A: Any, B: Any, C: Any, state: Any) -> Any:
    return torch.empty_like(x), x.new_empty((x.shape[0], x.shape[1], A.shape[-1]), dtype=torch.float32)


@whole_operator(
    "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? state) -> (Tensor, Tensor)", _selective_scan_sizes
)
def selective_scan(x: Any, dt: Any, A: Any, B: Any, C: Any, state: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mamba's scan: ``state = exp(dt A) state + dt x B``, ``y = state C``.

    x, dt: [B, D, L]; A: [D, N]; B, C: [B, N, L]; state: [B, D, N]. Gives y [B, D, L] and the state after the last.
    """
    state = x.new_zeros(*x.shape[:2], A.shape[-1]) if state is None else state
    outputs = []
    for t in range(x.shape[2]):
        new = (dt[..., t] * x[..., t])[..., None] * B[:, None, :, t]
        state = torch.exp(dt[..., t, None] * A) * state + new
        outputs.append((state @ C[:, :, t, None])[..., 0])
    return torch.stack(outputs, -1).to(x.dtype), state


def _state_space_sizes(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, dt_bias: Any, low: float, high: float, state: Any
) -> Any:
    sizes = (x.shape[0], x.shape[2], x.shape[3], B.shape[-1])
    return torch.empty_like(x), x.new_empty(sizes, dtype=torch.float32)


@whole_operator(
    "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor D, Tensor dt_bias, float low, float high, "
    "Tensor? state) -> (Tensor, Tensor)",
    _state_space_sizes,
)
def state_space(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, dt_bias: Any, low: float, high: float, state: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mamba 2's scan: ``state = exp(dt A) state + dt x B``, ``y = state C + D x``, one decay for a head.

    x: [B, L, H, P]; dt: [B, L, H], before its bias and softplus, clamped to ``low`` and ``high`` after; A, D, dt_bias:
    [H]; B, C: [B, L, groups of heads, N]; state: [B, H, P, N]. Gives y [B, L, H, P] and the state after the last.
    """
    dt = torch.nn.functional.softplus(dt + dt_bias).clamp(low, high)
    B, C = (item.repeat_interleave(x.shape[2] // item.shape[2], dim=2) for item in (B, C))
    state = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[-1]) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        new = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        state = torch.exp(dt[:, t] * A)[..., None, None] * state + new
        outputs.append((state @ C[:, t, ..., None])[..., 0] + D[:, None] * x[:, t])
    return torch.stack(outputs, 1).to(x.dtype), state


def _gated_delta_sizes(q: Any, k: Any, v: Any, g: Any, beta: Any, state: Any) -> Any:
    made = (v.shape[0], v.shape[2], q.shape[3], v.shape[3])
    return torch.empty_like(v, dtype=q.dtype), v.new_empty(made, dtype=torch.float32)


@whole_operator(
    "(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor? state) -> (Tensor, Tensor)", _gated_delta_sizes
)
def gated_delta(q: Any, k: Any, v: Any, g: Any, beta: Any, state: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The gated delta rule: ``state = exp(g) state``, ``state += k (beta (v - k state))``, ``y = q state``.

    q, k: [B, L, Hk, Dk]; v: [B, L, Hv, Dv]; g: [B, L, Hv], or [B, L, Hv, Dk] where each channel decays on its own;
    beta: [B, L, Hv]; state: [B, Hv, Dk, Dv]. Gives y [B, L, Hv, Dv] and the state after the last.
    """
    q, k = (item.repeat_interleave(v.shape[2] // item.shape[2], dim=2) for item in (q, k))
    decay = torch.exp(g if g.ndim == 4 else g[..., None])[..., None]
    state = q.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1]) if state is None else state
    outputs = []
    for t in range(q.shape[1]):
        state = decay[:, t] * state
        known = (k[:, t, :, None] @ state)[..., 0, :]
        state = state + k[:, t, ..., None] * (beta[:, t, :, None] * (v[:, t] - known))[:, :, None]
        outputs.append((q[:, t, :, None] @ state)[..., 0, :])
    return torch.stack(outputs, 1), state


def _wkv_sizes(decay: Any, first: Any, k: Any, v: Any, total: Any, weight: Any, largest: Any) -> Any:
    state = k.new_empty((k.shape[0], k.shape[2]), dtype=torch.float32)
    return torch.empty_like(k), state, torch.empty_like(state), torch.empty_like(state)


@whole_operator(
    "(Tensor decay, Tensor first, Tensor k, Tensor v, Tensor? total, Tensor? weight, Tensor? largest) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _wkv_sizes,
)
def wkv(decay: Any, first: Any, k: Any, v: Any, total: Any, weight: Any, largest: Any) -> tuple[torch.Tensor, ...]:
    """RWKV's attention: values weighed by ``exp(k)``, which decays by ``exp(-exp(decay))`` from token to token.

    decay, first (added to the newest key): [D]; k, v: [B, L, D]; total, weight: [B, D], sums of the weighed values and
    of the weights before, both divided by ``exp(largest)``. Gives y [B, L, D] and the three after the last.
    """
    if total is None:
        total, weight = (k.new_zeros(k.shape[0], k.shape[2], dtype=torch.float32) for _ in range(2))
        largest = torch.full_like(total, -1e38)
    outputs = []
    for t in range(k.shape[1]):
        key, value = k[:, t].float(), v[:, t]
        top = torch.maximum(largest, key + first)
        before, new = torch.exp(largest - top), torch.exp(key + first - top)
        outputs.append((before * total + new * value) / (before * weight + new))
        top = torch.maximum(largest - torch.exp(decay), key)
        before, new, largest = torch.exp(largest - torch.exp(decay) - top), torch.exp(key - top), top
        total, weight = before * total + new * value, before * weight + new
    return torch.stack(outputs, 1).to(k.dtype), total, weight, largest


def _one_token_sizes(x: Any, axis: int) -> Any:
    return x.new_empty([1 if index == axis else size for index, size in enumerate(x.shape)])


@whole_operator("(Tensor x, int axis) -> Tensor", _one_token_sizes)
def one_token(x: torch.Tensor, axis: int) -> torch.Tensor:
    """The first of the tokens along ``axis``, in the place of each: what a recurrent module is captured with."""
    return x.narrow(axis, 0, 1).clone()


def _all_tokens_sizes(x: Any, axis: int, like: Any, along: int) -> Any:
    return x.new_empty([like.shape[along] if index == axis else size for index, size in enumerate(x.shape)])


@whole_operator("(Tensor x, int axis, Tensor like, int along) -> Tensor", _all_tokens_sizes)
def all_tokens(x: torch.Tensor, axis: int, like: torch.Tensor, along: int) -> torch.Tensor:
    """What was computed for one token, in the place of what each gives: as many as ``like`` has along ``along``."""
    return x.repeat_interleave(like.shape[along], dim=axis)
