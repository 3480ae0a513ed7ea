"""Ops of torch's dialects and fake quantization, captured as what they compute."""

from __future__ import annotations

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # noqa: F401  (registers the operators)
from tests.graph.comparing import compared
from torch import nn

import mlxport

prims, quantized, aten = torch.ops.prims, torch.ops.quantized_decomposed, torch.ops.aten


class Computing(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


X, BYTES = torch.randn(3, 4) * 5, torch.randint(-99, 99, (3, 4), dtype=torch.int8)
SCALE, ZERO = torch.tensor(0.1), torch.tensor(3)
ROWS, ROW_ZEROS = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([-2, 0, 5])
TO_BYTES = (-128, 127, torch.int8)
CASES = {
    "prims of views": (lambda x: prims.collapse(prims.transpose(prims.squeeze(x, [1]), [1, 0, 2]), 0, 1),
                       torch.randn(2, 1, 3, 4)),
    "prims.broadcast_in_dim": (lambda x: prims.broadcast_in_dim(x, (2, 3, 4), (0, 2)), torch.randn(2, 1)),
    "prims of parts": (lambda x: prims.rev(prims.split_dim(prims.view_of(x), 0, 2), [0]), torch.randn(6, 2)),
    "prims of numbers": (lambda x: prims.fmod(prims.asinh(x), prims.exp2(x)) + prims.var(x, [0, 1], 1.0), X),
    "gradients with two kernels": (lambda x: aten.silu_backward(x, x + 1) + aten.mish_backward.default(x, x - 1), X),
    "per tensor": (
        lambda x: quantized.dequantize_per_tensor(
            quantized.quantize_per_tensor(x, 0.1, 3, *TO_BYTES), 0.1, 3, *TO_BYTES),
        X,
    ),
    "scales that are tensors": (
        lambda x, s, z: (quantized.quantize_per_tensor.tensor(x, s, z, *TO_BYTES),
                         quantized.dequantize_per_tensor.tensor(x.to(torch.int8), s, z, *TO_BYTES)),
        X, SCALE, ZERO,
    ),
    "bounds that are tensors": (
        lambda x, s, z, low, high: quantized.quantize_per_tensor.tensor2(x, s, z, low, high, torch.uint8),
        X, SCALE, ZERO, torch.tensor(0), torch.tensor(200),
    ),
    "per channel": (
        lambda x, s, z: quantized.dequantize_per_channel(
            quantized.quantize_per_channel(x, s, z, 0, *TO_BYTES), s, z, 0, *TO_BYTES),
        X, ROWS, ROW_ZEROS,
    ),
    "without zero points": (lambda x, s: quantized.dequantize_per_channel(x, s, None, 0, *TO_BYTES), BYTES, ROWS),
    "per token": (lambda x: _by_token(x, *quantized.choose_qparams_per_token_asymmetric(x, torch.int8)), X),
    "in groups": (
        lambda x, s, z: quantized.dequantize_per_channel_group(
            quantized.quantize_per_channel_group(x, s, z, -8, 7, torch.int8, 4), s, z, -8, 7, torch.int8, 4,
            torch.float32),
        torch.randn(3, 8), torch.rand(3, 2) + 0.1, torch.randint(-3, 3, (3, 2)),
    ),
    "chosen parameters": (lambda x: (*quantized.choose_qparams.tensor(x, -128, 127, 1e-6, torch.int8),
                                     *quantized.choose_qparams_symmetric.tensor(x, 0, 255, 1e-6, torch.uint8)), X),
    "fake": (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -20, 30), X),
    "fake by tensors": (lambda x, s, z: torch.fake_quantize_per_tensor_affine(x, s, z.int(), -20, 30), X, SCALE, ZERO),
    "fake by channels": (lambda x, s, z: torch.fake_quantize_per_channel_affine(x, s, z.int(), 0, -20, 30),
                         X, ROWS, ROW_ZEROS),
    "what a fake one clips": (lambda x: aten.fake_quantize_per_tensor_affine_cachemask(x, 0.1, 0, -20, 30), X),
    "a learned step": (lambda x, s, z: aten._fake_quantize_learnable_per_tensor_affine(x, s, z, -20, 30, 1.0),
                       X, torch.tensor([0.1]), torch.tensor([0.0])),
}  # fmt: skip


def _by_token(x, scales, zeros):
    scales, zeros = scales.float(), zeros.float()
    steps = quantized.quantize_per_token(x, scales, zeros, *TO_BYTES)
    return quantized.dequantize_per_token(steps, scales, zeros, *TO_BYTES, torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_what_it_computes(name):
    function, *args = CASES[name]
    module = Computing(function)
    compared(module, mlxport.port(module, tuple(args)), args)
