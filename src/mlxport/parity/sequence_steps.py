"""What a decoder writes token by token on its caches, against the logits of the whole text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.graph.capture.examples import Example
from mlxport.graph.write.port_weights import from_torch
from mlxport.parity.generation_checks import Continuation, check_generation
from mlxport.parity.generation_report import Generation
from mlxport.parity.recording import Array
from mlxport.quant.tolerances import PORTED, ROWS, Tolerance

__all__ = ["HasRead", "check_steps"]

_STEPS, _FEW = 32, 4
_PROMPTS = {11: _STEPS, 3: _FEW, 24: _FEW}  # tokens that a text begins with, and how many more are written
_SHORT = {6: _FEW, 3: _FEW, 8: _FEW}  # where each call reads all weights of the decoder


class HasRead:
    """A decoder whose encoder has read a text, as mlx-lm runs a language model."""

    def __init__(self, model: Any, source: mx.array) -> None:
        self._model = model
        self._source = source

    def make_cache(self) -> list[Any]:
        """Caches that hold what the encoder has read."""
        cache: list[Any] = self._model.make_cache()
        self._model.encode(self._source, cache)
        return cache

    def __call__(self, ids: mx.array, cache: list[Any]) -> mx.array:
        """Logits [1, length, vocabulary] after each of the tokens."""
        logits: mx.array = self._model(ids, cache)
        return logits


def check_steps(
    model: Any,
    example: Example,
    dtype: str,
    original: Callable[[Array, Array], Array] | None,
    context: int | None,
    *,
    short: bool = False,
) -> Generation:
    """Let a decoder write a text, and run it in every way in which mlx-lm's caches are used.

    Args:
        model: The port.
        example: What the encoder reads, tokens [batch, length] or features [batch, ...], and the first tokens.
        dtype: Main dtype of the port.
        original: From a source and a text [1, length] to the original's logits; None where its weights are others: then
            the port's own of the whole text are compared.
        context: Tokens that the model was made for, None where nothing says.
        short: Whether to write few tokens.
    """
    read, begun = (value[:1] for value in example.kwargs.values())
    source = (read.float() if read.is_floating_point() else read).numpy()
    reading = HasRead(model, from_torch(read))
    prompts = _SHORT if short else _PROMPTS
    longest = max(sum(counts) for counts in prompts.items())
    length = min(context or longest, longest)
    text = _written(reading, begun[0].tolist(), length)
    if original is not None:
        logits = original(source, np.array([text]))
    else:
        logits = np.array(reading(mx.array([text]), reading.make_cache())[0].astype(mx.float32))
    texts = []
    for size, count in prompts.items():
        prompt = max(2, min(size, length - count + 1))
        end = min(prompt + count - 1, length)
        texts.append(Continuation(text[:end], prompt, logits[:end]))
    bound = max(ROWS["same weights"].required["relative"], PORTED[dtype].largest)
    tolerance = Tolerance("steps", "one text in one call and in many", {"relative": bound})
    said = "the original" if original is not None else "the port"
    return check_generation(reading, texts, None, tolerance, f"{said}, whole texts", _FEW - 1)


def _written(reading: HasRead, begun: Sequence[int], length: int) -> list[int]:
    """A text that the likeliest tokens continue, ``length`` tokens in all."""
    text, cache = list(begun[:length]), reading.make_cache()
    new = text
    while len(text) < length:
        new = [int(reading(mx.array([new]), cache)[0, -1].argmax())]
        text += new
    return text
