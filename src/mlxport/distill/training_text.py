"""How long the sequences are that a model is trained on, and those of a text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.distill.distill_settings import DistillSettings
from mlxport.errors import TokenizerError
from mlxport.model.tokens import text_ids, within
from mlxport.model_config import ModelConfig

__all__ = ["read_sequences", "sequence_length"]


def sequence_length(settings: DistillSettings, config: Mapping[str, Any]) -> int:
    """Tokens of a sequence: as asked, within what the model was made for."""
    return max(2, min(settings.length, ModelConfig(config).context_length or settings.length))


def read_sequences(
    folder: Path, text: str, count: int, length: int, vocabulary: int, *, trust_remote_code: bool = False
) -> mx.array:
    """A text as sequences, int32 [at most ``count``, length].

    Raises:
        TokenizerError: There is no tokenizer, or the text has not the tokens of four sequences of 16 tokens.
    """
    ids = text_ids(folder, text, trust_remote_code=trust_remote_code)
    kept, _ = within(ids or (), vocabulary)
    length = min(length, max(16, len(kept) // 4))
    found = min(count, len(kept) // length)
    if found < 4:
        why = "no tokenizer that loads" if ids is None else f"a text of only {len(kept)} tokens"
        raise TokenizerError(f"--distill: {folder} has {why}", hint="add the model's tokenizer, or leave it out")
    return mx.array(np.array(kept[: found * length]).reshape(found, length).astype(np.int32))
