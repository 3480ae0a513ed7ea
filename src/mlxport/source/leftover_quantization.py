"""Blocks of a quantizer that a config has kept though the weights are plain again: merged or dequantized, then saved.

The headers decide: a packed weight is one of integers or of eight bits, or has scales beside it, whatever the method.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlxport.types import TensorRef

__all__ = ["names_quantization", "without_leftover_quantization"]

_BLOCKS = ("quantization_config", "quantization")
_PLAIN = ("F16", "BF16", "F32", "F64")
_BUFFERS = ("BOOL", "I64")  # masks and positions, which no method packs weights in
# What stands beside packed weights, or in their place: MLX, AWQ and GPTQ, compressed-tensors and ModelOpt,
# bitsandbytes, gpt-oss, AQLM, HQQ, quanto.
_BESIDE = re.compile(
    r"(?:.*[._])?(?:scales|qweight|qzeros|g_idx|weight_packed|weight_scale\w*|weight_zero_point|input_scale|absmax"
    r"|quant_map|nested_absmax|quant_state\.\w+|SCB|blocks|codes|codebooks|W_q|_data|_scale)"
)
# Methods whose weights may be stored plain and are quantized whenever the model computes: the block counts.
_WHILE_COMPUTING = ("bitnet",)


def names_quantization(config: Mapping[str, Any]) -> bool:
    """Whether a config says that its weights are quantized; whether they are, their headers say."""
    return next(_blocks(config), None) is not None


def without_leftover_quantization(
    config: dict[str, Any], tensors: Mapping[str, TensorRef]
) -> tuple[dict[str, Any], list[str]]:
    """A config without the quantization that its weights do not have, and what to say of it.

    Args:
        config: The parsed config.json.
        tensors: All tensors of the checkpoint.
    """
    found = [*_blocks(config)]
    if not found or any(method in _WHILE_COMPUTING for _, method in found) or not _all_plain(tensors):
        return config, []
    said = ", ".join(f"{path}{f' ({method})' if method else ''}" for path, method in found)
    problem = f"config.json has {said}, but all weights are plain: it does not count; delete it from config.json"
    return _without_blocks(config), [problem]


def _blocks(config: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """Where in a config a quantization stands, and its method."""
    for key, value in config.items():
        if key in _BLOCKS and isinstance(value, Mapping) and value:
            yield where + key, str(value.get("quant_method") or "").lower()
        elif isinstance(value, Mapping) and not where:
            yield from _blocks(value, f"{key}.")


def _without_blocks(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if not (key in _BLOCKS and isinstance(value, Mapping))}
    return {
        key: {name: item for name, item in value.items() if not (name in _BLOCKS and isinstance(item, Mapping))}
        if isinstance(value, Mapping)
        else value
        for key, value in kept.items()
    }


def _all_plain(tensors: Mapping[str, TensorRef]) -> bool:
    return not any(_BESIDE.fullmatch(name) for name in tensors) and all(
        ref.dtype in _PLAIN or (ref.dtype in _BUFFERS and not name.endswith("weight")) for name, ref in tensors.items()
    )
