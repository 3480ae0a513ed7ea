"""Sequences that a model writes itself, to be calibrated on: what it knows best, where no text is at hand."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxport.calibrate.weights import Weights
from mlxport.run.sampling import sample_sequences

__all__ = ["write_sequences"]

_SEED = 20


def write_sequences(model: nn.Module, weights: Weights, first: mx.array, length: int) -> mx.array:
    """Sequences drawn from the model, token by token; the same ones every time on the same machine.

    Args:
        model: mlx-lm's; it is given all its weights, so it must fit in memory.
        weights: Its weights.
        first: The first token of each sequence, int32 [sequences].
        length: Tokens of a sequence.

    Returns:
        int32 [sequences, length].
    """
    names: Any = [name for name, _ in tree_flatten(model.parameters())]
    model.update(tree_unflatten([(name, weights.whole(name)) for name in names]))
    tokens, _ = sample_sequences(model, first[:, None], length, mx.random.key(_SEED))
    return tokens
