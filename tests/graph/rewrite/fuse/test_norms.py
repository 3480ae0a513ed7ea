"""RMSNorm and LayerNorm written out become one op, and near-misses do not."""

from __future__ import annotations

import math

import pytest
import torch
from fusing import Function, fused

EPS = 1e-5


def llama(self, x):
    wide = x.to(torch.float32)
    variance = wide.pow(2).mean(-1, keepdim=True)
    return self.weight * (wide * torch.rsqrt(variance + EPS)).to(x.dtype)


def gemma(self, x):
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + EPS)
    return (y * (1.0 + self.weight.float())).type_as(x)


def divided(self, x):
    return x / torch.sqrt(torch.mean(x * x, -1, keepdim=True) + EPS) * self.weight


def power(self, x):
    return x * (EPS + (x**2).mean(-1, True)) ** -0.5 * self.weight


def sums(self, x):
    return (x * self.weight) / ((x * x).sum(-1, keepdim=True) / x.shape[-1] + EPS).sqrt()


def reciprocal(self, x):
    return x * self.weight * (1 / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS))


def kept_out(self, x):
    return self.weight * x * torch.rsqrt((x * x).mean(-1) + EPS).unsqueeze(-1)


def weightless(self, x):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS)


def centred(self, x):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt((x - mean).pow(2).mean(-1, keepdim=True) + EPS) * self.weight + self.bias


def by_variance(self, x):
    y = (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + EPS)
    return self.bias + self.weight * y


def both_moments(self, x):
    variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
    return (x - mean) / (variance + EPS) ** 0.5 * self.weight


def cohere(self, x):
    y = x.to(torch.float32)
    mean = y.mean(-1, keepdim=True)
    variance = (y - mean).pow(2).mean(-1, keepdim=True)
    return (self.weight * ((y - mean) * torch.rsqrt(variance + EPS))).to(x.dtype)


def square_of_mean(self, x):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) * torch.rsqrt((x * x).mean(-1, keepdim=True) - mean * mean + EPS) * self.weight + self.bias


RMS = [llama, gemma, divided, power, sums, reciprocal, kept_out, weightless]
LAYER = [centred, by_variance, both_moments, cohere, square_of_mean]


def together(functions, *shapes, size=16, dtype=torch.float32, limit=1e-4):
    """All functions as modules of their own, in one program."""

    class All(torch.nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.norms = torch.nn.ModuleList()
            for function in functions:
                weight, bias = (torch.rand(size, generator=generator, dtype=torch.float32) + 0.5 for _ in range(2))
                self.norms.append(Function(function, weight=weight.to(dtype), bias=bias.to(dtype)))

        def forward(self, x):
            return [norm(x) for norm in self.norms]

    inputs = [(torch.randn(shape).to(dtype),) for shape in shapes]
    return fused(All(), *inputs, limit=limit, dynamic=len(shapes) > 1)


def test_spellings_of_rms_norm():
    result = together(RMS, (2, 5, 16), (3, 7, 16))
    assert result.applied.count("rms_norm") == len(RMS) and not result.declined
    assert "rsqrt" not in result.source and "mean" not in result.source and "nn.RMSNorm(16" in result.source
    assert "mx.fast.rms_norm(x, None, 1e-05)" in result.source


def test_spellings_of_layer_norm():
    result = together(LAYER, (2, 5, 16), (3, 7, 16))
    assert result.applied.count("layer_norm") == len(LAYER) and not result.declined
    assert "rsqrt" not in result.source and "mean" not in result.source and "nn.LayerNorm(16" in result.source


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casts_to_float32_and_back(dtype):
    result = together([llama, gemma, cohere], (2, 5, 16), dtype=dtype, limit=2e-2)
    assert result.applied == ["rms_norm", "rms_norm", "layer_norm"] and "rsqrt" not in result.source


def test_channels_first():
    def convnext(self, x):
        mean = x.mean(1, keepdim=True)
        y = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + EPS)
        return self.weight[:, None, None] * y + self.bias[:, None, None]

    result = together([convnext], (2, 16, 4, 5), (3, 16, 6, 7))
    assert result.applied == ["layer_norm"] and "nn.LayerNorm(16" in result.source


def test_small_numbers_show_where_eps_is():
    module = Function(llama, weight=torch.ones(16))
    fused(module, (torch.randn(2, 5, 16) * 1e-3,), (torch.zeros(3, 4, 16),))


def eps_outside(self, x):
    return self.weight * x / ((x * x).mean(-1, keepdim=True).sqrt() + EPS)


def annotated_transformer(self, x):
    return self.weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.bias


def unbiased(self, x):
    return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + EPS) * self.weight


def clamped(self, x):
    return self.weight * x / (x * x).mean(-1, keepdim=True).sqrt().clamp(min=0.1)


def another_mean(self, x):
    return (x - x.mean(1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + EPS)


def by_length(self, x):
    return self.weight * (x / (x.norm(2, dim=-1, keepdim=True) / math.sqrt(16)))


def summed(self, x):
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + EPS)


def shared(self, x):
    variance = (x * x).mean(-1, keepdim=True)
    return x * torch.rsqrt(variance + EPS) * self.weight + variance


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (eps_outside, "something else than x / sqrt"),
        (annotated_transformer, "something else than (x - mean)"),
        (unbiased, "something else than (x - mean)"),
        (clamped, "something else than x / sqrt"),
        (by_length, "something else than x / sqrt"),
        (summed, "something else than x / sqrt"),
        (shared, "used in part"),
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)
def test_near_misses(function, reason):
    result = together([function], (2, 5, 16))
    assert not result.applied and "_norm" not in result.source and reason in result.declined[0]


def test_a_mean_over_another_axis_is_left():
    result = together([another_mean], (2, 16, 16))
    assert not result.applied


def test_rms_over_another_axis_is_declined():
    def function(self, x):
        return x * torch.rsqrt((x * x).mean(1, keepdim=True) + EPS)

    result = together([function], (2, 5, 16))
    assert not result.applied and "axes [1] of 3" in result.declined[0]


def test_a_weight_by_position_stays_outside():
    def function(self, x):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS) * self.weight[:, None]

    result = together([function], (2, 16, 8))
    assert result.applied == ["rms_norm"] and "mx.fast.rms_norm(x, None" in result.source
