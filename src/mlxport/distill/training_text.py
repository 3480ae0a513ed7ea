"""Sequences of tokens to train on: what the model itself writes, or a text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxport.distill.distill_settings import DistillSettings
from mlxport.errors import TokenizerError
from mlxport.model.probe_text import text_ids
from mlxport.model_config import ModelConfig
from mlxport.run.sampling import sample_sequences

__all__ = ["read_sequences", "sequence_length", "written_sequences"]

_TOGETHER = 16  # sequences that are written at once


def sequence_length(settings: DistillSettings, config: Mapping[str, Any]) -> int:
    """Tokens of a sequence: as asked, within what the model was made for."""
    return max(2, min(settings.length, ModelConfig(config).context_length or settings.length))


def written_sequences(model: nn.Module, config: Mapping[str, Any], count: int, length: int, seed: int) -> mx.array:
    """What a model writes from the beginning of a text on, sampled as it predicts: int32 [count, length].

    Args:
        model: mlx-lm's.
        config: Its configuration.
        count: Number of sequences.
        length: Tokens of each.
        seed: Of the sampling.
    """
    begin = ModelConfig(config).bos
    key = mx.random.key(seed)
    parts = []
    for start in range(0, count, _TOGETHER):
        rows = min(_TOGETHER, count - start)
        first = mx.full((rows, 1), begin or 0, dtype=mx.int32)
        # Where nothing says how a text begins, any token may.
        tokens, key = sample_sequences(model, first, length, key, anything_second=begin is None)
        parts.append(tokens)
        mx.eval(parts[-1])
        mx.clear_cache()
    return mx.concatenate(parts)


def read_sequences(
    folder: Path, text: str, count: int, length: int, vocabulary: int, *, trust_remote_code: bool = False
) -> mx.array:
    """A text as sequences, int32 [at most ``count``, length].

    Raises:
        TokenizerError: There is no tokenizer, or the text has not the tokens of four sequences of 16 tokens.
    """
    ids = text_ids(folder, text, trust_remote_code=trust_remote_code)
    kept = [token for token in ids or () if token < vocabulary]
    length = min(length, max(16, len(kept) // 4))
    found = min(count, len(kept) // length)
    if found < 4:
        why = "no tokenizer that loads" if ids is None else f"a text of only {len(kept)} tokens"
        raise TokenizerError(f"--distill: {folder} has {why}", hint="add the model's tokenizer, or leave it out")
    return mx.array(np.array(kept[: found * length]).reshape(found, length).astype(np.int32))
