"""The sequences that a model is trained on: of a text, or written by a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxport.distill.distill_settings import DistillSettings
from mlxport.errors import TokenizerError
from mlxport.model.both_texts import beginnings, copied, first_written, source_size
from mlxport.model.self_written import sample_sequences
from mlxport.model.texts import calibration_text
from mlxport.model.tokens import any_token, first_tokens, text_ids, within
from mlxport.model_config import ModelConfig
from mlxport.types import Checkpoint

__all__ = ["Texts", "sequence_length"]

_TOGETHER = 16  # sequences that are written at once


def sequence_length(settings: DistillSettings, config: Mapping[str, Any]) -> int:
    """Tokens of a sequence: as asked, within what the model was made for."""
    return max(2, min(settings.length, ModelConfig(config).context_length or settings.length))


@dataclass(frozen=True)
class Texts:
    """What sequences are made of.

    Attributes:
        folder: Where the tokenizer lies.
        checkpoint: The original.
        config: The output's configuration.
        vocabulary: Number of token ids.
        length: Tokens of a sequence.
        text: The user's, None for a built-in one.
        seed: Of what models write.
    """

    folder: Path
    checkpoint: Checkpoint
    config: Mapping[str, Any]
    vocabulary: int
    length: int
    text: str | None
    seed: int

    def to_write(self, writer: nn.Module | None, wanted: int, by: str) -> tuple[mx.array, str]:
        """Sequences of a language model: what ``writer`` writes, and of the user's text as many.

        Args:
            writer: A model in memory; None where none is, and so the text is all there is.
            wanted: Most sequences.
            by: What to call the writer.

        Returns:
            int32 [sequences, length], and where they are from.

        Raises:
            TokenizerError: There is no tokenizer, or the text has not the tokens of four sequences of 16 tokens.
        """
        parts, sources, length = [], [], self.length
        if self.text is not None or writer is None:
            parts.append(self._read(wanted if writer is None else wanted // 2, length))
            length = parts[0].shape[1]
            sources.append(self._name)
        if writer is not None:
            count = wanted - sum(part.shape[0] for part in parts)
            key = mx.random.key(self.seed)
            otherwise = any_token(self.vocabulary, count, key)
            first = first_tokens(ModelConfig(self.config), self.vocabulary, count, otherwise)
            parts.append(sample_sequences(writer, first, length, key, _TOGETHER))
            sources.append(f"that {by} wrote")
        return mx.concatenate(parts), " and ".join(sources)

    def to_read_and_write(self, writer: nn.Module | None, wanted: int, by: str) -> tuple[mx.array, str]:
        """The same of a model that reads with an encoder, which gets both texts: it reads, and ``writer`` writes of it.

        Of the user's text half is copied instead, and all of it where no model is in memory.
        """
        start, texts = first_written(self.checkpoint), self._read(wanted, source_size(self.length))
        ids = mx.concatenate([texts, texts], axis=1)  # the first halves are what is read
        copies = ids.shape[0] if writer is None else ids.shape[0] // 2 if self.text is not None else 0
        parts, sources, name = [], [], self._name.removeprefix("of ")
        if copies:
            parts.append(copied(ids[:copies], start))
            sources.append(f"copied from {name}")
        if writer is not None:
            begun = beginnings(ids[copies:], start)
            parts.append(sample_sequences(writer, begun, ids.shape[1], mx.random.key(self.seed), _TOGETHER))
            sources.append(f"that {by} wrote of {'it' if copies else name}")
        return mx.concatenate(parts), " and ".join(sources)

    @property
    def _name(self) -> str:
        return "of a built-in text" if self.text is None else "of the text"

    def _read(self, count: int, length: int) -> mx.array:
        """The text as sequences, int32 [at most ``count``, at most ``length``]."""
        text = calibration_text() if self.text is None else self.text
        ids = text_ids(self.folder, text, trust_remote_code=self.checkpoint.trust_remote_code)
        kept, _ = within(ids or (), self.vocabulary)
        length = min(length, max(16, len(kept) // 4))
        found = min(count, len(kept) // length)
        if found < 4:
            why = "no tokenizer that loads" if ids is None else f"a text of only {len(kept)} tokens"
            raise TokenizerError(
                f"--distill: {self.folder} has {why}", hint="add the model's tokenizer, or leave it out"
            )
        return mx.array(np.array(kept[: found * length]).reshape(found, length).astype(np.int32))
