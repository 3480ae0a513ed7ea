"""Originals stored in fp8 blocks, made float32 for the reference: value times the scale of its block.

The format of DeepSeek-V3's checkpoints: ``X.weight`` in e4m3 with ``X.weight_scale_inv``, one scale for each block of
``weight_block_size`` rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mlxport.errors import UnsupportedError
from mlxport.parity.torch_rows import read_block
from mlxport.types import Checkpoint

__all__ = ["Fp8Weights", "source_weights"]


class Fp8Weights:
    """The float32 weights of such a checkpoint, by rows, under their names."""

    def __init__(self, checkpoint: Checkpoint, block: tuple[int, int]) -> None:
        self.tensors = checkpoint.tensors
        self.block = block

    def __contains__(self, name: object) -> bool:
        return f"{name}_scale_inv" in self.tensors

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows along axis 0; for stacked experts these are experts."""
        ref, scales = self.tensors[name], self.tensors[f"{name}_scale_inv"]
        stop = ref.shape[0] if stop is None else stop
        high, wide = self.block
        values = read_block(ref, start, stop).to(torch.float32)
        if len(ref.shape) > 2:
            factors = read_block(scales, start, stop).to(torch.float32)
            first = 0
        else:
            first = start // high * high
            factors = read_block(scales, start // high, -(-stop // high)).to(torch.float32)
        factors = factors.repeat_interleave(high, -2).repeat_interleave(wide, -1)
        skip = start - first if len(ref.shape) == 2 else 0
        return values * factors[..., skip : skip + values.shape[-2], : values.shape[-1]]


def source_weights(checkpoint: Checkpoint) -> Fp8Weights | None:
    """How to read a quantized original, None where it is not quantized.

    Raises:
        UnsupportedError: It is quantized in a way that no float32 reference can be made from.
    """
    settings: Mapping[str, Any] | None = checkpoint.config.get("quantization_config")
    if not settings:
        return None
    named = settings.get("quant_method") or ("MLX" if {"bits", "group_size"} <= set(settings) else "unknown")
    method, block = str(named), settings.get("weight_block_size")
    scaled = any(name.endswith(".weight_scale_inv") for name in checkpoint.tensors)
    if method == "fp8" and scaled and isinstance(block, (list, tuple)) and len(block) == 2:
        return Fp8Weights(checkpoint, (int(block[0]), int(block[1])))
    raise UnsupportedError(
        f"{checkpoint.name} is quantized ({method}): no float32 reference can be built from it",
        hint="convert with --verify none, or verify against the unquantized original",
    )
