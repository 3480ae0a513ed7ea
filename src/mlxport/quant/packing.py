"""Weights to what is stored of them and back, in any mode and by any quantizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlxport.quant.modes import MODES, is_linear
from mlxport.quant.search import search_affine
from mlxport.types import QuantSpec

__all__ = ["PARTS", "dequantize_rows", "quantize_rows", "searches"]

# What a packed weight is stored as, in the order of ``mx.quantize``; only linear modes have biases.
PARTS = ("weight", "scales", "biases")


def searches(quantizer: str, spec: QuantSpec | None) -> bool:
    """Whether a quantizer searches scales and biases of a setting, rather than take MLX's own."""
    return quantizer == "search" and spec is not None and is_linear(spec.mode)


def quantize_rows(rows: mx.array, spec: QuantSpec, quantizer: str = "rtn") -> Sequence[mx.array]:
    """What is stored of rows, in the order of ``PARTS``.

    Args:
        rows: Floating, in the dtype that is quantized; the last dimension is a multiple of the group size.
        spec: The setting.
        quantizer: ``rtn`` or ``search``.
    """
    if searches(quantizer, spec):
        return search_affine(rows, group_size=spec.group_size, bits=spec.bits)
    return mx.quantize(rows, group_size=spec.group_size, bits=spec.bits, mode=spec.mode)


def dequantize_rows(parts: Sequence[mx.array], spec: QuantSpec) -> mx.array:
    """Float32 weights of what is stored of them, in the order of ``PARTS``."""
    words, scales, *biases = parts
    how: dict[str, Any] = {"group_size": spec.group_size, "bits": spec.bits, "mode": spec.mode}
    if MODES[spec.mode].scale_bits is None:
        (bias,) = biases
        return mx.dequantize(words, scales.astype(mx.float32), bias.astype(mx.float32), **how)
    return mx.dequantize(words, scales, dtype=mx.float32, **how)
