"""The tokens that damage is measured on: what the model itself writes, so that no data is needed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlxport.errors import UnsupportedError
from mlxport.model.lazy_parameters import LazyModel, wide_on_cpu
from mlxport.model.self_written import write_sequences
from mlxport.model.tensors import computed_tensors
from mlxport.model.texts import WRITES_UP_TO
from mlxport.model.tokens import any_token, first_tokens, probe_ids
from mlxport.transform import Program
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
        model: mlx-lm's model; its parameters are placeholders afterwards.
        program: From checkpoint tensors to the model's parameters.
        vocabulary: Number of token ids.
        sequences: How many.
        length: Tokens of each.
    """
    tensors = computed_tensors(program)
    if sum(tensor.nbytes for tensor in tensors.values()) <= WRITES_UP_TO:
        key = mx.random.key(0)
        first = first_tokens(checkpoint.model_config, vocabulary, sequences, any_token(vocabulary, sequences, key))
        with contextlib.suppress(UnsupportedError):  # an architecture that mlx-lm cannot generate with: it still reads
            writer = LazyModel(model, tensors, wide_on_cpu)
            return Tokens(write_sequences(writer, first, length, key, "give a text"), "written by itself")
    (ids, _), notes = probe_ids(checkpoint.root, vocabulary, sequences * length)
    origin = "random" if any("pseudo-random" in note for note in notes) else "of a built-in text"
    return Tokens(mx.array(ids, mx.int32).reshape(sequences, length), origin)
