"""Sequences that a model writes itself, to be calibrated on: what it knows best, where no text is at hand."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxport.calibrate.weights import Weights

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
    from mlx_lm.models.cache import make_prompt_cache

    names: Any = [name for name, _ in tree_flatten(model.parameters())]
    model.update(tree_unflatten([(name, weights.whole(name)) for name in names]))
    cache, key = make_prompt_cache(model), mx.random.key(_SEED)
    tokens = [first[:, None]]
    for _ in range(length - 1):
        key, now = mx.random.split(key)
        logits = model(tokens[-1], cache=cache)[:, -1].astype(mx.float32)
        tokens.append(mx.random.categorical(logits, key=now)[:, None].astype(mx.int32))
        mx.eval(tokens[-1], [entry.state for entry in cache])
    return mx.concatenate(tokens, axis=1)
