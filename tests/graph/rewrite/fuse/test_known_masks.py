"""Masks that inputs take part in are written briefly where sizes alone decide."""

from __future__ import annotations

import torch
from fusing import Function, fused
from torch.nn import functional

AUTO = torch.export.Dim.AUTO
AXES = {"args": ({0: AUTO, 2: AUTO}, {0: AUTO, 1: AUTO})}


def padding(*lengths: int) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def ported(function):
    first = torch.randn(2, 4, 5, 8), padding(5, 3)
    second = torch.randn(3, 4, 7, 8), padding(7, 2, 5)
    return fused(Function(function), first, second, dynamic=AXES)


def test_gathered_padding_and_compared_ranges():
    def function(x, seen):
        batch, length = torch.arange(x.shape[0])[:, None, None, None], torch.arange(x.shape[2])
        causal = length[None, None, None, :] <= length[None, None, :, None]
        mask = torch.ones((), dtype=torch.bool) & causal & seen[batch, length[None, None, None, :]]
        return functional.scaled_dot_product_attention(x, x, x, mask)

    result = ported(function)
    assert "mx.tri(L, dtype=mx.bool_)" in result.source or "mx.tri(H, dtype=mx.bool_)" in result.source
    assert "arange" not in result.source and "masked_attention(" in result.source


def test_what_is_always_true_goes():
    def function(x, seen):
        length = torch.arange(x.shape[2])
        mask = (length >= 0)[None, None, :, None] & seen[:, None, None]
        return functional.scaled_dot_product_attention(x, x, x, mask)

    assert ">= 0" not in ported(function).source


def test_a_gather_in_another_order_stays():
    def function(x, seen):
        length = torch.arange(x.shape[2])
        mask = seen[torch.arange(x.shape[0])[:, None], length.flip(0)][:, None, None]
        return functional.scaled_dot_product_attention(x, x, x, mask)

    assert "arange" in ported(function).source


def test_a_window_beside_padding_stays():
    def function(x, seen):
        length = torch.arange(x.shape[2])
        mask = (length[:, None] - length < 3) & (length <= length[:, None]) & seen[:, None, None]
        return functional.scaled_dot_product_attention(x, x, x, mask)

    assert "< 3" in ported(function).source
