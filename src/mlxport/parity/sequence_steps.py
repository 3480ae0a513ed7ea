"""What a decoder writes token by token on its caches, against what it writes of a whole text at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxport.graph.capture.examples import Example
from mlxport.graph.write.port_weights import from_torch
from mlxport.quant.tolerances import PORTED

__all__ = ["HasRead", "step_problems"]

_PIECES = (1, 2, 1, 1)  # tokens of the first calls; a last one gets the rest


class HasRead:
    """A decoder whose encoder has read a text, as mlx-lm runs a language model."""

    def __init__(self, model: Any, source: Sequence[int]) -> None:
        self._model = model
        self._source = mx.array([list(source)])

    def make_cache(self) -> list[Any]:
        """Caches that hold what the encoder has read."""
        cache: list[Any] = self._model.make_cache()
        self._model.encode(self._source, cache)
        return cache

    def __call__(self, ids: mx.array, cache: list[Any]) -> mx.array:
        """Logits [1, length, vocabulary] after each of the tokens."""
        logits: mx.array = self._model(ids, cache)
        return logits


def step_problems(model: nn.Module, example: Example, dtype: str) -> list[str]:
    """How a text that is written in pieces, each on what the caches hold of those before, differs from one call.

    Args:
        model: The port.
        example: ``input_ids`` and ``decoder_input_ids`` [batch, length].
        dtype: Main dtype of the port.
    """
    source, written = (from_torch(example.kwargs[name]) for name in ("input_ids", "decoder_input_ids"))
    written = mx.concatenate([written] * 4, axis=1)
    whole = model(written, input_ids=source)
    cache: list[Any] = model.make_cache()
    model.encode(source, cache)
    pieces, start = [], 0
    for size in (*_PIECES, written.shape[1]):
        pieces.append(model(written[:, start : start + size], cache))
        start += size
    difference = float(mx.abs(mx.concatenate(pieces, axis=1) - whole).max())
    scale = float(mx.abs(whole).max())
    if difference <= PORTED[dtype].largest * scale:
        return []
    return [f"logits of single steps are {difference:.2e} from those of the whole text, of {scale:.2e}"]
