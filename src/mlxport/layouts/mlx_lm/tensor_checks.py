"""What a checkpoint must have in common with mlx-lm's model of its config: names, shapes, kinds of numbers."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from mlxport.errors import UnsupportedError, WeightsError
from mlxport.layouts.mlx_lm.quantized_sources import UNQUANTIZED
from mlxport.transform import st_dtype
from mlxport.types import Checkpoint


def check_names(
    expected: Mapping[str, mx.array], weights: Mapping[str, mx.array], module: str, method: str, source: str
) -> None:
    """Compare the tensors with what the model expects; raises, naming each that is missing or unexpected."""
    missing = sorted(set(expected) - set(weights))
    extra = sorted(set(weights) - set(expected))
    where = module.rsplit(".", 1)[-1]
    if extra and method and method != "MLX":
        message = f"{source} is quantized with {method}, and mlx-lm's {where} has no place for {_listed(extra)}"
        raise UnsupportedError(message, hint=UNQUANTIZED)
    if missing:
        hint = "the checkpoint is incomplete, or config.json belongs to another model"
        raise WeightsError(f"mlx-lm's {where} expects {_listed(missing)}, absent from {source}", hint=hint)
    if extra:
        hint = "config.json does not describe these weights (or this variant of the architecture)"
        raise WeightsError(f"{source}: mlx-lm's {where} has no place for {_listed(extra)}", hint=hint)


def check_shapes(expected: Mapping[str, mx.array], weights: Mapping[str, mx.array], source: str) -> None:
    """Compare the shapes; raises, naming the first tensor of another one."""
    for name, array in weights.items():
        if name in expected and tuple(expected[name].shape) != tuple(array.shape):
            raise WeightsError(
                f"{source}: {name}: config.json asks for shape {tuple(expected[name].shape)}, "
                f"the checkpoint has {tuple(array.shape)}",
                hint="config.json belongs to another model, or is damaged",
            )


def check_dtypes(expected: Mapping[str, mx.array], weights: Mapping[str, mx.array], checkpoint: Checkpoint) -> None:
    """Refuse integers and complex numbers where an unquantized model computes with real ones."""
    if any(ref.dtype.startswith("F8_") for ref in checkpoint.tensors.values()):
        return  # bytes that sanitize may decode later; refuse_raw_fp8 knows
    for name, array in weights.items():
        if name not in expected or not mx.issubdtype(expected[name].dtype, mx.floating):
            continue
        if not mx.issubdtype(array.dtype, mx.floating):
            stored = st_dtype(array.dtype)
            raise WeightsError(
                f"{checkpoint.location}: {name} is stored as {stored}, mlx-lm computes with floating point there, "
                "and config.json names no quantization that explains it",
                hint=f"{UNQUANTIZED}, or with the config.json that belongs to these weights",
            )


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
