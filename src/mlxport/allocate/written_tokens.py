"""The tokens that damage is measured on: what the model itself writes, so that no data is needed."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxport.model.probe_text import probe_ids
from mlxport.model_config import ModelConfig
from mlxport.run.sampling import WRITES_UP_TO, sample_sequences
from mlxport.transform import Program, float32, lazy_outputs
from mlxport.types import Checkpoint

__all__ = ["Tokens", "make_tokens"]


@dataclass(frozen=True)
class Tokens:
    """What damage is measured on.

    Attributes:
        ids: int32 [sequences, length].
        origin: Where they come from, in words that follow "tokens".
    """

    ids: mx.array
    origin: str


def make_tokens(
    checkpoint: Checkpoint, model: nn.Module, program: Program, vocabulary: int, sequences: int, length: int
) -> Tokens:
    """Sequences that the model writes by itself, drawn with a fixed seed; of a text where it is too large for that.

    Args:
        checkpoint: The opened source, for its tokenizer and the first token.
        model: mlx-lm's model; its parameters are left as they were.
        program: From checkpoint tensors to the model's parameters.
        vocabulary: Number of token ids.
        sequences: How many.
        length: Tokens of each.
    """
    nbytes = sum(output.dtype.size * int(np.prod(output.shape)) for output in program.outputs.values())
    if nbytes <= WRITES_UP_TO:
        try:
            return Tokens(
                _written(checkpoint.model_config, model, program, vocabulary, sequences, length), "written by itself"
            )
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            pass  # an architecture that mlx-lm cannot generate with: it still reads
    (ids, _), notes = probe_ids(checkpoint.root, vocabulary, sequences * length)
    origin = "random" if any("pseudo-random" in note for note in notes) else "of a built-in text"
    return Tokens(mx.array(ids, mx.int32).reshape(sequences, length), origin)


def _written(
    config: ModelConfig, model: nn.Module, program: Program, vocabulary: int, sequences: int, length: int
) -> mx.array:
    from mlx.utils import tree_flatten

    before = tree_flatten(model.parameters())
    key = mx.random.key(0)
    try:
        # MLX's CPU multiplies matrices of experts in float32 only, and others faster.
        wide = mx.default_device() == mx.cpu
        given = lazy_outputs(program)
        nn.Module.load_weights(
            model,
            [(name, float32(array) if wide else array) for name, array in given.items()],
            strict=False,
        )
        token = _first(config, vocabulary, sequences, key)
        return sample_sequences(model, token, length, key)[0]
    finally:
        nn.Module.load_weights(model, before, strict=False)
        mx.clear_cache()


def _first(config: ModelConfig, vocabulary: int, sequences: int, key: mx.array) -> mx.array:
    """The token that texts begin with, else any."""
    if config.bos is not None and config.bos < vocabulary:
        return mx.full((sequences, 1), config.bos, mx.int32)
    return mx.random.randint(0, vocabulary, (sequences, 1), key=key).astype(mx.int32)
