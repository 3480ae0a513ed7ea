"""Texts from models that read with an encoder and write with a decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from mlxport.errors import UsageError
from mlxport.model_config import ModelConfig
from mlxport.run.beam_search import BeamSettings, search_beams
from mlxport.run.generation_result import GenerationResult, peak_rss
from mlxport.run.kv import KVQuant, prompt_cache
from mlxport.run.load import LoadedModel, check_ids
from mlxport.run.sequence_rules import SequenceRules, read_rules

__all__ = ["Reading", "read_source", "rules_of", "write_beams"]


@dataclass(frozen=True)
class Reading:
    """What an encoder has read, for the decoder to write on.

    Attributes:
        start: The token that the text begins with.
        cache: Of the model's ``make_cache``, filled by ``encode``.
        tokens: How many were read.
        tps: Tokens that were read per second.
    """

    start: int
    cache: list[Any]
    tokens: int
    tps: float


def rules_of(
    loaded: LoadedModel, max_tokens: int | None, given: Mapping[str, Any], warn: Callable[[str], object]
) -> SequenceRules:
    """What the folder's generation_config.json says of a text; what of it is not applied is warned of.

    Args:
        loaded: The model.
        max_tokens: Most tokens to write; None is what the settings say.
        given: Settings that hold instead of the folder's.
        warn: Called with each warning.

    Raises:
        ConfigError: A setting is none that transformers has.
    """
    rules = read_rules(loaded.path, loaded.tokenizer.eos_token_ids, max_tokens, given)
    # Beyond its positions the decoder would read what is no row of their table, and MLX says nothing.
    most = ModelConfig(loaded.config).count("max_decoder_position_embeddings", "max_position_embeddings")
    if most is not None and rules.max_tokens > most:
        if max_tokens is not None:
            warn(f"--max-tokens {max_tokens}: this decoder has {most} positions, and writes no more tokens")
        rules = replace(rules, max_tokens=most)
    for name in rules.not_applied():
        warn(f"generation_config.json sets {name}, which is not applied")
    return rules


def read_source(loaded: LoadedModel, tokens: Sequence[int], rules: SequenceRules, kv: KVQuant | None = None) -> Reading:
    """Let the encoder read ``tokens``, for a text by ``rules``; ``kv``: how the decoder's cache is to be quantized.

    Raises:
        ConfigError: The folder does not say which token a text begins with.
        TokenizerError: A token lies outside of the vocabulary.
    """
    start = rules.start()
    if not tokens:
        raise UsageError("the prompt makes no tokens", hint="give another prompt, or check the folder's tokenizer")
    check_ids(tokens, loaded.config)
    begun = time.perf_counter()
    cache = prompt_cache(loaded.model, kv)
    loaded.model.encode(mx.array([list(tokens)]), cache)
    mx.eval([layer[0].state for layer in cache])
    return Reading(start, cache, len(tokens), len(tokens) / (time.perf_counter() - begun))


def write_beams(
    loaded: LoadedModel,
    read: Reading,
    rules: SequenceRules,
    settings: BeamSettings,
    on_text: Callable[[str], object] | None,
) -> GenerationResult:
    """The likeliest text that a search with beams finds; ``on_text`` is called once, with all of it."""
    begun = time.perf_counter()
    written = search_beams(loaded.model, read.cache, read.start, rules.ends, rules.max_tokens, settings, rules.rules())
    seconds = time.perf_counter() - begun
    end = written[-1] if written and written[-1] in rules.ends else None
    tokens = written if end is None else written[:-1]
    text = loaded.decode(tokens)
    if on_text is not None and text:
        on_text(text)
    return GenerationResult(
        text=text,
        tokens=tuple(tokens),
        prompt_tokens=read.tokens,
        cached_tokens=0,
        generation_tokens=len(written),
        prompt_tps=read.tps,
        generation_tps=len(written) / seconds,
        peak_memory=int(mx.get_peak_memory()),
        peak_rss=peak_rss(),
        finish_reason="length" if end is None else "stop",
        end_token=end,
    )
