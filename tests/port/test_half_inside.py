"""Modules whose forward is fixed to half precision, by a cast or by what it makes, are compared in that precision."""

from __future__ import annotations

import mlx.core as mx
import pytest
import torch
from torch import nn

import mlxport
from mlxport.errors import VerificationError
from mlxport.graph.write.port_weights import from_torch


class Cast(nn.Module):
    """Weights in half precision, inputs in float32."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.linear = nn.Linear(16, 8, bias=False).to(dtype)

    def forward(self, x):
        return self.linear(x.to(self.dtype))


class Made(nn.Module):
    """A tensor of half precision that the forward makes meets weights of it."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.linear = nn.Linear(16, 8).to(dtype)

    def forward(self, x):
        return self.linear(torch.full((x.shape[0], 16), 0.3, dtype=self.dtype)) + x.sum()


class Between(nn.Module):
    """Most weights are float32, those of one layer are not."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.first, self.second = nn.Linear(16, 64), nn.Linear(64, 8).to(dtype)

    def forward(self, x):
        return self.second(self.first(x).to(self.dtype)).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [Cast, Made, Between])
def test_it_is_verified(kind, dtype):
    torch.manual_seed(0)
    module, x = kind(dtype).eval(), torch.randn(5, 16)
    port = mlxport.port(module, (x,))
    wanted, got = from_torch(module(x).detach()), port(from_torch(x))
    assert got.dtype == wanted.dtype
    assert float(mx.abs(got.astype(mx.float32) - wanted.astype(mx.float32)).max()) < 0.05
    assert ("bfloat16" if dtype is torch.bfloat16 else "float16") in port.source or kind is not Between


def test_a_wrong_port_is_found(monkeypatch):
    from mlxport.port import in_memory

    make = in_memory.make_weights
    monkeypatch.setattr(in_memory, "make_weights", lambda result: {k: -v for k, v in make(result).items()})
    with pytest.raises(VerificationError, match="differs by"):
        mlxport.port(Cast(torch.bfloat16).eval(), (torch.randn(5, 16),))
