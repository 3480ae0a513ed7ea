"""Forward passes of quantized layers that can be trained in reasonable time.

MLX differentiates its quantized products by scales and biases. On a GPU that is fast; the CPU multiplies packed weights
some twenty times slower than plain ones, so there the layers unpack their weight first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxport.model.hooks import swapped
from mlxport.model.leaf_calls import LeafCalls, is_leaf, leaf_class
from mlxport.quant import is_linear

__all__ = ["trained"]


class _Unpacked(LeafCalls):
    """An affine layer whose weight is unpacked in every call."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def _transposed(self) -> mx.array:
        packed, scales, biases = (self.module[name] for name in ("weight", "scales", "biases"))
        how = {"group_size": self.module.group_size, "bits": self.module.bits}
        return mx.dequantize(packed, scales, biases, **how).swapaxes(-1, -2)

    def linear(self, x: mx.array) -> mx.array:
        return x @ self._transposed()

    def lookup(self, ids: mx.array) -> mx.array:
        rows: mx.array = nn.QuantizedEmbedding.__call__(self.module, ids)
        return rows

    def experts(self, x: mx.array, indices: mx.array, ordered: bool) -> mx.array:
        return mx.gather_mm(x, self._transposed(), rhs_indices=indices, sorted_indices=ordered)


@contextlib.contextmanager
def trained(model: nn.Module, unpacked: bool | None = None) -> Iterator[None]:
    """Let the quantized layers of a model compute as is best for training, while the context lasts.

    Args:
        model: The model.
        unpacked: Whether weights are unpacked first; by default on the CPU.
    """
    if unpacked is None:
        unpacked = mx.default_device() == mx.cpu
    linear = [
        module
        for _, module in model.named_modules()
        if unpacked and is_leaf(module) and is_linear(getattr(module, "mode", ""))
    ]
    with swapped((module, leaf_class(module, _Unpacked(module))) for module in linear):
        model.train()  # mlx-lm's layers leave out kernels that have no gradients
        try:
            yield
        finally:
            model.eval()
