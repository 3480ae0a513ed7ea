"""Prompts as what takes noise away reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from mlxport.run.diffusion.pipeline_parts import PipelineParts
from mlxport.source.tokenizer_loading import load_tokenizer

__all__ = ["PromptReader"]

_TWO = "text_encoder_2"


class PromptReader:
    """The text encoders of a pipeline, one or two, with their tokenizers.

    Attributes:
        cut: Words of the last prompt that were beyond what an encoder reads, as text; empty where all were read.
    """

    def __init__(self, parts: PipelineParts) -> None:
        self._parts = parts
        self._names = [name for name in ("text_encoder", _TWO) if name in parts]
        self._tokenizers = [load_tokenizer(parts.folder / self._tokenizer_of(name)) for name in self._names]
        self.cut = ""

    @staticmethod
    def _tokenizer_of(name: str) -> str:
        return name.replace("text_encoder", "tokenizer")

    def read(self, prompt: str, against: str | None) -> dict[str, mx.array]:
        """A prompt, and before it what to stay away from: [2, …] by the names of inputs of ``unet``.

        Args:
            prompt: The prompt.
            against: What to stay away from; None for nothing in particular.
        """
        self.cut = ""
        texts = [against or "", prompt]
        found = [
            self._encoded(name, tokenizer, texts) for name, tokenizer in zip(self._names, self._tokenizers, strict=True)
        ]
        states = mx.concatenate([each["hidden_states"] for each in found], axis=-1)
        made = {"encoder_hidden_states": states, **{k: v for k, v in found[-1].items() if k != "hidden_states"}}
        if not against and against is None and self._parts.config.get("force_zeros_for_empty_prompt", False):
            made = {name: mx.concatenate([mx.zeros_like(value[:1]), value[1:]]) for name, value in made.items()}
        return made

    def _encoded(self, name: str, tokenizer: Any, texts: Sequence[str]) -> Mapping[str, mx.array]:
        length = int(self._parts.component(name)["max_position_embeddings"])
        every = tokenizer(list(texts))["input_ids"]
        ids = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True)["input_ids"]
        if len(every[-1]) > length:
            self.cut = tokenizer.decode(every[-1][length - 1 : -1], skip_special_tokens=True).strip()
        with self._parts.using(name) as encoder:
            made = encoder(input_ids=mx.array(ids))
            found = dict(made) if isinstance(made, Mapping) else {"hidden_states": made}
            mx.eval(found)
        return found
