"""Texts as a ported encoder reads them: tokens in padded batches, never longer than it has positions for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.model_config import ModelConfig
from mlxport.run.tasks.pipeline import Array, Pipeline
from mlxport.run.tasks.port_call import call_port, inputs_of
from mlxport.run.tasks.task_options import TextOptions
from mlxport.run.text_encoding import encode_texts, longest_text
from mlxport.source.tokenizer_loading import load_tokenizer

__all__ = ["TEXTS", "Batch", "TextPipeline"]

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Paris is the capital of France, and Berlin that of Germany.",
    "I did not like this film at all: two hours of my life, gone!",
    "Yes.",
)
"""What models are compared with their originals on."""


@dataclass(frozen=True)
class Batch:
    """Texts that are computed at once.

    Attributes:
        places: Where they stand in the list of all.
        inputs: The tokenizer's arrays, [texts, tokens].
        outputs: The model's, by name.
    """

    places: list[int]
    inputs: Mapping[str, Array]
    outputs: Mapping[str, mx.array]


class TextPipeline(Pipeline):
    """Of a port that reads a text as a whole."""

    reads = "text"

    def __init__(self, folder: Any, *, trust_remote_code: bool = False) -> None:
        super().__init__(folder, trust_remote_code=trust_remote_code)
        self.tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)

    @property
    def longest(self) -> int | None:
        """Tokens that a text may have, its special ones included; None where nothing says."""
        return longest_text(self.tokenizer, self.config)

    @property
    def bounded(self) -> bool:
        """Whether a longer text cannot be read, or would not be by the original; else it is warned of."""
        return not ModelConfig(self.config).any_length

    def encode(self, texts: Sequence[Any], options: TextOptions, **more: Any) -> Any:
        """The tokenizer's encoding of texts, without padding.

        Raises:
            UsageError: An input is no text, is empty, or longer than the model reads.
            TokenizerError: The tokenizer fails, or knows tokens that the model does not.
        """
        beyond = None if self.bounded else _warn
        return encode_texts(self.tokenizer, texts, self.longest, self.config, options.truncate, beyond, **more)

    def batches(self, made: Any, size: int) -> Iterator[Batch]:
        """Texts of about the same length, padded to it and computed, the longest first."""
        count = len(made["input_ids"])
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in made]
        order = sorted(range(count), key=lambda place: -len(made["input_ids"][place]))
        if "attention_mask" not in inputs_of(self.model):  # what is padded could not be told from what is not
            size = 1
        for part in self.batched(count, size):
            places = order[part]
            inputs = {name: self._padded(name, [made[name][place] for place in places]) for name in names}
            yield Batch(places, inputs, self._computed(inputs))

    def _padded(self, name: str, rows: Sequence[Sequence[int]]) -> Array:
        pad = {"input_ids": self.tokenizer.pad_token_id or 0, "token_type_ids": self.tokenizer.pad_token_type_id}
        longest = max(map(len, rows))
        padded = np.full((len(rows), longest), pad.get(name, 0), np.int64)
        for index, row in enumerate(rows):
            start = longest - len(row) if self.tokenizer.padding_side == "left" else 0
            padded[index, start : start + len(row)] = row
        return padded

    def _computed(self, inputs: Mapping[str, Array]) -> Mapping[str, mx.array]:
        """The model's outputs; what it asks for beyond what the tokenizer gives is zero, as types of tokens are."""
        outputs: Mapping[str, mx.array] = call_port(
            self.model, inputs, reads=self.reads, refused=f"{self.folder.name} does not take this text",
            hint="give a shorter one", supplied={"token_type_ids": mx.zeros_like},
        )  # fmt: skip
        return outputs

    def fits(self, text: str) -> bool:
        """Whether the model reads a text as a whole."""
        return self.longest is None or len(self.tokenizer(text)["input_ids"]) <= self.longest

    def examples(self) -> list[Any]:
        """Texts of several lengths, as far as the model reads them."""
        return [text for text in TEXTS if self.fits(text)] or ["Yes."]


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)  # a task's own file
