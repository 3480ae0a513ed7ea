"""Count the weights of a checkpoint from names, dtypes and shapes alone, also where they are packed.

A packed tensor counts as the weights that it stands for, the scales and zero points beside it as none, so that a model
has as many parameters after quantization as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from mlxport.model_config import ModelConfig
from mlxport.quant import DEFAULT_MODE, MODES
from mlxport.types import DTYPE_BITS, TensorRef

__all__ = ["DtypeCount", "count_by_dtype", "count_parameters", "describe_quantization"]

# Suffix of what accompanies a packed or scaled weight -> suffixes of that weight, one of which is there.
_COMPANIONS: Mapping[str, tuple[str, ...]] = {
    ".scales": (".weight", ".qweight"),  # MLX; AWQ and GPTQ
    ".biases": (".weight",),
    ".global_scale": (".weight",),
    ".qzeros": (".qweight",),
    ".g_idx": (".qweight",),
    ".weight_scale": (".weight", ".weight_packed"),  # compressed-tensors, ModelOpt, fp8
    ".weight_scale_2": (".weight",),
    ".weight_scale_inv": (".weight",),
    ".weight_zero_point": (".weight", ".weight_packed"),
    ".weight_global_scale": (".weight", ".weight_packed"),
    ".weight_shape": (".weight_packed",),
    ".weight_g_idx": (".weight_packed",),
    ".input_scale": (".weight",),
    ".input_global_scale": (".weight", ".weight_packed"),
    ".activation_scale": (".weight",),
    "_scales": ("_blocks",),  # gpt-oss
    ".SCB": (".weight",),  # bitsandbytes, 8 bits
    ".weight_format": (".weight",),
    ".weight.absmax": (".weight",),  # bitsandbytes, 4 bits
    ".weight.quant_map": (".weight",),
    ".weight.nested_absmax": (".weight",),
    ".weight.nested_quant_map": (".weight",),
    ".weight.quant_state.bitsandbytes__nf4": (".weight",),
    ".weight.quant_state.bitsandbytes__fp4": (".weight",),
}
_BNB4 = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")


@dataclass(frozen=True, slots=True)
class DtypeCount:
    """How much of a checkpoint is stored in one dtype."""

    tensors: int
    elements: int
    nbytes: int


def count_by_dtype(tensors: Mapping[str, TensorRef]) -> dict[str, DtypeCount]:
    """Return dtype -> what is stored in it, the largest first; packed weights count as they are stored."""
    counts: dict[str, DtypeCount] = {}
    for ref in tensors.values():
        old = counts.get(ref.dtype, DtypeCount(0, 0, 0))
        counts[ref.dtype] = DtypeCount(old.tensors + 1, old.elements + ref.size, old.nbytes + ref.nbytes)
    return dict(sorted(counts.items(), key=lambda item: -item[1].nbytes))


def count_parameters(config: ModelConfig, tensors: Mapping[str, TensorRef]) -> int:
    """Return the number of weights; packed ones are counted unpacked, tensors that share their bytes once."""
    seen: set[tuple[Any, ...]] = set()
    total = 0
    for name, ref in tensors.items():
        place = (ref.path, ref.offset, ref.shape, ref.strides)
        if ref.size and place in seen:
            continue
        seen.add(place)
        total += _weights(name, ref, config, tensors)
    return total


def _weights(name: str, ref: TensorRef, config: ModelConfig, tensors: Mapping[str, TensorRef]) -> int:
    """Return how many weights a tensor stands for."""
    if _is_companion(name, tensors):
        return 0
    if name.endswith(".weight") and ref.dtype == "U32" and (scales := tensors.get(f"{name[:-7]}.scales")):
        # The groups of a row tell its length, whatever the bits: [..., in / group].
        return prod(scales.shape) * _mlx_group(name.removesuffix(".weight"), config)
    if name.endswith((".qweight", ".weight_packed")) and ref.dtype in ("I32", "U8"):
        return ref.nbytes * 8 // _foreign_bits(config)
    if name.endswith("_blocks") and ref.dtype == "U8" and f"{name.removesuffix('_blocks')}_scales" in tensors:
        return ref.size * 2
    if name.endswith(".weight") and ref.dtype == "U8":
        halves = any(name + suffix in tensors for suffix in _BNB4) or f"{name}_scale" in tensors
        return ref.size * 2 if halves else ref.size
    return ref.size


def _is_companion(name: str, tensors: Mapping[str, TensorRef]) -> bool:
    for suffix, owners in _COMPANIONS.items():
        if name.endswith(suffix):
            stem = name[: -len(suffix)]
            owner = next((tensors[stem + end] for end in owners if stem + end in tensors), None)
            # A weight in a floating dtype of 16 or more bits has no scales: then the tensor is a parameter of its own.
            if owner is not None and not (owner.dtype.startswith(("F", "BF")) and DTYPE_BITS[owner.dtype] > 8):
                return True
    return False


def _mlx_group(module: str, config: ModelConfig) -> int:
    block = config.mlx_quantization
    own = block.get(module)
    group = (own if isinstance(own, Mapping) else block).get("group_size")
    mode = MODES.get(str(block.get("mode")), MODES[DEFAULT_MODE])
    return group if isinstance(group, int) and group > 0 else mode.groups[0]


def _foreign_bits(config: ModelConfig) -> int:
    block = config.foreign_quantization
    bits = block.get("bits", block.get("w_bit"))
    groups = block.get("config_groups")  # compressed-tensors: {"group_0": {"weights": {"num_bits": 4, ...}}}
    if bits is None and isinstance(groups, Mapping):
        for group in groups.values():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            bits = weights.get("num_bits") if isinstance(weights, Mapping) else None
            break
    return bits if isinstance(bits, int) and 0 < bits <= 8 else 4


def describe_quantization(config: ModelConfig, tensors: Mapping[str, TensorRef]) -> dict[str, Any] | None:
    """Return how the weights are quantized, None when they are not.

    Keys: ``method`` (``mlx`` or the name in ``quantization_config``), and where they are known ``mode``, ``bits``,
    ``group_size`` and ``overrides`` (modules with settings of their own, or left out).
    """
    block = config.mlx_quantization
    if block:
        found = {"method": "mlx", "mode": block.get("mode", DEFAULT_MODE)}
        found |= {key: block[key] for key in ("bits", "group_size") if isinstance(block.get(key), int)}
        found["overrides"] = sum(isinstance(value, (Mapping, bool)) for value in block.values())
        return found
    block = config.foreign_quantization
    if block:
        name = block.get("quant_method") or block.get("quant_algo") or "unknown"
        found = {"method": str(name)}
        if isinstance(block.get("bits", block.get("w_bit")), int) or "config_groups" in block:
            found["bits"] = _foreign_bits(config)
        if isinstance(group := block.get("group_size", block.get("q_group_size")), int):
            found["group_size"] = group
        if isinstance(form := block.get("format"), str):
            found["mode"] = form
        return found
    if any(name.endswith((".qweight", ".weight_packed", ".weight_scale_inv")) for name in tensors):
        return {"method": "unknown"}
    return None
