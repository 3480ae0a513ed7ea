"""Forward passes of quantized layers that can be trained in reasonable time.

MLX differentiates its quantized products by scales and biases. On a GPU that is fast; the CPU multiplies packed weights
some twenty times slower than plain ones, so there the layers unpack their weight first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

__all__ = ["trained"]


def _weight(module: Any) -> mx.array:
    packed, scales, biases = (module[name] for name in ("weight", "scales", "biases"))
    return mx.dequantize(packed, scales, biases, group_size=module.group_size, bits=module.bits)


class _Linear(nn.QuantizedLinear):  # type: ignore[misc]
    def __call__(self, x: mx.array) -> mx.array:
        output = x @ _weight(self).swapaxes(-1, -2)
        return output + self["bias"] if "bias" in self else output


class _Embedding(nn.QuantizedEmbedding):  # type: ignore[misc]
    def as_linear(self, x: mx.array) -> mx.array:
        return x @ _weight(self).swapaxes(-1, -2)


class _Experts(QuantizedSwitchLinear):  # type: ignore[misc]
    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        weight = _weight(self).swapaxes(-1, -2)
        output = mx.gather_mm(x, weight, rhs_indices=indices, sorted_indices=sorted_indices)
        return output + mx.expand_dims(self["bias"][indices], -2) if "bias" in self else output


_UNPACKED: Mapping[type, type] = {
    nn.QuantizedLinear: _Linear,
    nn.QuantizedEmbedding: _Embedding,
    QuantizedSwitchLinear: _Experts,
}


@contextlib.contextmanager
def trained(model: nn.Module, unpacked: bool | None = None) -> Iterator[None]:
    """Let the affine layers of a model compute as is best for training, while the context lasts.

    Args:
        model: The model.
        unpacked: Whether weights are unpacked first; by default on the CPU.
    """
    if unpacked is None:
        unpacked = mx.default_device() == mx.cpu
    changed = [
        (module, type(module))
        for _, module in model.named_modules()
        if unpacked and type(module) in _UNPACKED and module.mode == "affine"
    ]
    for module, cls in changed:
        module.__class__ = _UNPACKED[cls]
    model.train()  # mlx-lm's layers leave out kernels that have no gradients
    try:
        yield
    finally:
        model.eval()
        for module, cls in changed:
            module.__class__ = cls
