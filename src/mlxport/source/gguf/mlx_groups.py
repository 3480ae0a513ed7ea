"""A GGUF checkpoint as one that MLX has quantized: blocks that MLX's groups hold without loss stay what they are."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from mlxport.source.gguf.rows import GgufRows, in_groups
from mlxport.types import Checkpoint, TensorRef

__all__ = ["holds_blocks", "in_mlx_groups"]

_GROUP = 32
_EXPERT = re.compile(r"\.experts\.\d+\.")


def holds_blocks(checkpoint: Checkpoint) -> bool:
    """Whether tensors of a checkpoint are stored as blocks of ggml."""
    return any(_is_packed(ref) for ref in checkpoint.tensors.values())


def _is_packed(ref: TensorRef) -> bool:
    return isinstance(ref.made, GgufRows) and ref.made.tensor.kind.values is not None


def in_mlx_groups(checkpoint: Checkpoint) -> tuple[Checkpoint, str]:
    """The checkpoint with the tensors that MLX can hold as they are in its groups, and what is to be said of it.

    Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 are affine groups of 32 with a float16 scale: code times scale plus bias is the very
    number. Other blocks (the K types) come out as numbers. The checkpoint is one that ``holds_blocks``.
    """
    tensors: dict[str, TensorRef] = {}
    bits: dict[str, int] = {}
    plain = 0
    for name, ref in checkpoint.tensors.items():
        found = in_groups(ref) if name.endswith(".weight") else None
        if found is None:
            tensors[name] = ref
            plain += _is_packed(ref)
            continue
        bits[name.removesuffix(".weight")] = found[0]
        tensors |= found[1]
    if not bits:
        return (
            checkpoint,
            f"{plain} tensors in blocks that MLX does not have come out as numbers; -q quantizes them anew",
        )
    config = {**checkpoint.config, "quantization": _quantization(bits)}
    said = f"{len(bits)} tensors keep their blocks as MLX's groups of {_GROUP}: the same numbers, nothing is rounded"
    if plain:
        said += f"; {plain} in blocks that MLX does not have come out as numbers"
    return replace(checkpoint, config=config, tensors=tensors), said


def _quantization(bits: dict[str, int]) -> dict[str, Any]:
    """The block that mlx-lm reads: the commonest bits, and by path where a module has others."""
    usual = Counter(bits.values()).most_common(1)[0][0]
    block: dict[str, Any] = {"group_size": _GROUP, "bits": usual, "mode": "affine"}
    for path, own in bits.items():
        if own != usual:
            block[_EXPERT.sub(".switch_mlp.", path)] = {"group_size": _GROUP, "bits": own, "mode": "affine"}
    return block
