"""Ops that fusions write into a graph where ATen has none: each computes with torch what its lowering does with MLX."""

from __future__ import annotations

from typing import Any

import torch

from mlxport.graph.lower.traits import declare

__all__ = ["attention", "causal", "gather_mm", "literal", "quick_gelu", "rotary", "sliding_window"]


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Any = None,
    scale: float = 1.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """``softmax(scale * query @ key.T + mask) @ value``; each of fewer key heads serves as many query heads.

    The mask is None, ``"causal"`` (the last query sees the last key), truth values, or added. ``sinks`` has a score
    for each head that takes part in the softmax and has no value.
    """
    if query.ndim > 3 and key.shape[1] != query.shape[1]:
        key, value = (item.repeat_interleave(query.shape[1] // key.shape[1], 1) for item in (key, value))
    scores = query @ key.transpose(-1, -2) * scale
    if isinstance(mask, str):
        rows, columns = scores.shape[-2:]
        mask = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril(columns - rows)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:-1], 1)], dim=-1)
    return scores.softmax(-1)[..., : key.shape[-2]].to(value.dtype) @ value


@declare(creation=True)
def causal(rows: int, columns: int) -> torch.Tensor:
    """Truth values: the last query sees all keys, each one before it a key less."""
    return torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)


@declare(creation=True)
def sliding_window(rows: int, window: int, columns: int | None = None) -> torch.Tensor:
    """Truth values: each query sees its key and the ``window - 1`` before it; the last query has the last key."""
    columns = rows if columns is None else columns
    back = torch.arange(columns - rows, columns)[:, None] - torch.arange(columns)
    return (back >= 0) & (back < window)


@declare(creation=True)
def literal(values: Any, dtype: torch.dtype) -> torch.Tensor:
    """A small constant array, written into the code."""
    return torch.tensor(values, dtype=dtype)


def rotary(
    x: torch.Tensor,
    dims: int,
    traditional: bool,
    base: float | None,
    scale: float,
    offset: Any,
    freqs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotary embedding as ``mx.fast.rope`` computes it."""
    if freqs is None:
        inverse = torch.as_tensor(float(base or 1.0)) ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    else:
        inverse = 1 / freqs.double()
    angle = (torch.arange(x.shape[-2]) + offset)[:, None] * scale * inverse
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    turned, rest = x[..., :dims], x[..., dims:]
    if traditional:
        a, b = turned[..., ::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    else:
        a, b = turned.chunk(2, dim=-1)
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return torch.cat([turned, rest], dim=-1)


@declare(pointwise=True)
def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """``x * sigmoid(1.702 * x)``."""
    return x * torch.sigmoid(1.702 * x)


def gather_mm(
    x: torch.Tensor,
    weight: torch.Tensor,
    experts: torch.Tensor,
    ascending: bool = False,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``x @ weight[experts] + bias[experts]``: a matrix for each of the first axes of ``x``.

    The bias is a vector for each expert. ``ascending``: the experts are sorted.
    """
    product = x @ weight[experts]
    return product if bias is None else product + bias[experts].unsqueeze(-2)
