"""What a checkpoint must have in common with mlx-lm's model of its config: names, shapes, kinds of numbers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import mlx.core as mx

from mlxport.errors import UnsupportedError, WeightsError
from mlxport.layouts.foreign_parts import refuse_adapters, refuse_heads
from mlxport.layouts.mlx_lm.output_heads import is_head
from mlxport.layouts.mlx_lm.quantized_sources import UNQUANTIZED
from mlxport.layouts.mlx_lm.unsaid_sizes import unsaid_size
from mlxport.progress import listed
from mlxport.transform import st_dtype
from mlxport.types import Checkpoint


class NamesDiffer(WeightsError):
    """A checkpoint has other names than the model.

    Attributes:
        differing: Number of names that only one of the two has.
    """

    def __init__(self, message: str, *, hint: str, differing: int) -> None:
        super().__init__(message, hint=hint)
        self.differing = differing


def check_names(
    expected: Mapping[str, mx.array], weights: Mapping[str, mx.array], module: str, method: str, checkpoint: Checkpoint
) -> None:
    """Compare the tensors with what the model expects; raises, naming what is missing beside what is there instead."""
    missing, extra = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if not missing and not extra:
        return
    source, where = checkpoint.location, f"mlx-lm's {module.rsplit('.', 1)[-1]}"
    if extra and method and method != "MLX":
        message = f"{source} is quantized with {method}, and {where} has no place for {listed(extra)}"
        raise UnsupportedError(message, hint=UNQUANTIZED)
    refuse_adapters(extra, source)
    refuse_heads(extra, checkpoint.config, source)
    message, hint = _in_words(missing, extra, len(expected), source, where, checkpoint)
    if unsaid := unsaid_size(checkpoint.config):
        message, hint = f"{message}; {unsaid}", unsaid.hint
    raise NamesDiffer(message, hint=hint, differing=len(missing) + len(extra))


def _in_words(
    missing: list[str], extra: list[str], count: int, source: str, where: str, checkpoint: Checkpoint
) -> tuple[str, str]:
    """How the names differ, and what may help."""
    if not missing:
        return (
            f"{source}: {where} has no place for {listed(extra)}",
            "config.json does not describe these weights (or this variant of the architecture): "
            f"compare them with: mlxport inspect {shlex.quote(source)}",
        )
    many = f" ({len(missing)} of {count} tensors)" if len(missing) > 1 else ""
    most = 4 if extra else 8
    message = f"{where} expects {listed(missing, most)}, absent from {source}{many}"
    if extra:
        message += f", which holds {listed(extra, most)} instead"
    if not extra and all(map(is_head, missing)):
        return f"{message}: a base or an embedding model has no output layer", _headless_hint(checkpoint)
    return message, (
        "config.json belongs to another model, or names were changed when the weights were saved"
        if extra
        else "a part of the weights is missing, or config.json belongs to another model: get both from the same place"
    )


def _headless_hint(checkpoint: Checkpoint) -> str:
    return (
        'set "tie_word_embeddings": true in config.json if the output shares the embeddings '
        "(an embedding model is used without its output layer, so that this changes nothing)"
    )


def check_shapes(expected: Mapping[str, mx.array], weights: Mapping[str, mx.array], checkpoint: Checkpoint) -> None:
    """Compare the shapes; raises, naming the first tensor of another one and what in the config may be the cause."""
    for name, array in weights.items():
        if name not in expected or (asked := tuple(expected[name].shape)) == (held := tuple(array.shape)):
            continue
        unsaid = unsaid_size(checkpoint.config, asked, held)
        why = f" ({unsaid})" if unsaid else ""
        raise WeightsError(
            f"{checkpoint.location}: {name}: config.json asks for shape {asked}{why}, the checkpoint has {held}",
            hint=unsaid.hint if unsaid else "config.json belongs to another model, or is damaged",
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
