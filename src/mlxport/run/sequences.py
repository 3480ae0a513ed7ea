"""Texts from models that read with an encoder and write with a decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxport.errors import UsageError
from mlxport.run.load import LoadedModel, check_ids
from mlxport.run.sequence_rules import read_rules

__all__ = ["Reading", "read_source"]


@dataclass(frozen=True)
class Reading:
    """What an encoder has read, for the decoder to write on.

    Attributes:
        start: The token that the text begins with.
        cache: Of the model's ``make_cache``, filled by ``encode``.
        processors: What may be written, for mlx-lm's ``generate_step``.
        tps: Tokens that were read per second.
    """

    start: int
    cache: list[Any]
    processors: list[Callable[[mx.array, mx.array], mx.array]]
    tps: float


def read_source(loaded: LoadedModel, tokens: Sequence[int], max_tokens: int, warn: Callable[[str], object]) -> Reading:
    """Let the encoder read ``tokens``, for a text by the rules of the folder's generation_config.json.

    Raises:
        ConfigError: The folder does not say which token a text begins with.
        TokenizerError: A token lies outside of the vocabulary.
    """
    rules = read_rules(loaded.path, loaded.tokenizer.eos_token_ids, max_tokens)
    for name in rules.not_applied():
        warn(f"generation_config.json sets {name}, which is not applied")
    start = rules.start()
    if not tokens:
        raise UsageError("the prompt makes no tokens", hint="give another prompt, or check the folder's tokenizer")
    check_ids(tokens, loaded.config)
    begun = time.perf_counter()
    cache = loaded.model.make_cache()
    loaded.model.encode(mx.array([list(tokens)]), cache)
    mx.eval([layer[0].state for layer in cache])
    return Reading(start, cache, rules.processors(), len(tokens) / (time.perf_counter() - begun))
