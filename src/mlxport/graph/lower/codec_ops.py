"""Operators of codecs of sound, whole: what their modules spell by the length, or by a codebook that is not theirs."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from mlxport.graph.lower.whole_operator import whole_operator

__all__ = ["nearest_row", "pad_to_strides"]


def _ends(length: Any, kernel: int, stride: int, causal: bool) -> tuple[int, Any]:
    after = 0 if causal else (kernel - stride) // 2
    return kernel - stride - after, after + -length % stride


def _padded_sizes(x: Any, kernel: int, stride: int, causal: bool, mode: str) -> Any:
    return x.new_empty((*x.shape[:-1], -(-x.shape[-1] // stride) * stride + kernel - stride))


@whole_operator("(Tensor x, int kernel, int stride, bool causal, str mode) -> Tensor", _padded_sizes)
def pad_to_strides(x: torch.Tensor, kernel: int, stride: int, causal: bool, mode: str) -> torch.Tensor:
    """``x`` [B, C, L] padded so that every stride that begins in it is a step of a convolution that spans ``kernel``.

    Causal: all but what the last step lacks lies before. What is too short to be reflected ends in zeros meanwhile.
    """
    length = x.shape[-1]
    before, after = _ends(length, kernel, stride, causal)
    if mode == "reflect":
        x = functional.pad(x, (0, max(0, max(before, after) + 1 - length)))
    return functional.pad(x, (before, after), mode)[..., : before + length + after].clone()


def _nearest_sizes(x: Any, codebook: Any) -> Any:
    return x.new_empty(x.shape[:-1], dtype=torch.int64)


@whole_operator("(Tensor x, Tensor codebook) -> Tensor", _nearest_sizes)
def nearest_row(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The row of ``codebook`` [rows, width] that each vector of ``x`` [..., width] is nearest to, int64."""
    squares = x.square().sum(-1, keepdim=True) + codebook.square().sum(-1)
    return (squares - 2 * x @ codebook.T).argmin(dim=-1)
