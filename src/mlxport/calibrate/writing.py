"""Sequences that a model writes itself, to be calibrated on: what it knows best."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxport.calibrate.plain_weights import Weights
from mlxport.errors import UnsupportedError
from mlxport.run.sampling import sample_sequences
from mlxport.transform import float32

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

    Raises:
        UnsupportedError: mlx-lm cannot generate with this model here.
    """
    names: Any = [name for name, _ in tree_flatten(model.parameters())]
    # MLX's CPU multiplies float32 several times as fast as what is stored, and stacks of experts in nothing else.
    wide = mx.default_device() == mx.cpu
    given = ((name, weights.whole(name)) for name in names)
    model.update(tree_unflatten([(name, float32(array) if wide else array) for name, array in given]))
    try:
        return sample_sequences(model, first[:, None], length, mx.random.key(_SEED))[0]
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedError(
            f"mlx-lm cannot write with this model: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            hint="calibrate on a text: --calibrate FILE",
        ) from error
