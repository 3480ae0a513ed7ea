"""One vector of each sentence, as a sentence-transformers folder describes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mlxport.errors import ConfigError, UsageError
from mlxport.run.tasks.pipeline import Array, Difference
from mlxport.run.tasks.pooling import SentenceSettings, pooled, read_settings
from mlxport.run.tasks.task_options import SentenceOptions
from mlxport.run.tasks.text_inputs import Batch, TextPipeline
from mlxport.run.tasks.vectors import compare_vectors, mask_of, states_of, vector_lines, write_vectors

__all__ = ["SentenceSimilarity"]


class SentenceSimilarity(TextPipeline):
    """``sentence-similarity``: a vector for each text: what ``SentenceTransformer.encode`` gives."""

    task = "sentence-similarity"
    options = SentenceOptions
    also_runs = ("feature-extraction",)

    def __init__(self, folder: Any, *, trust_remote_code: bool = False) -> None:
        super().__init__(folder, trust_remote_code=trust_remote_code)
        settings = read_settings(folder)
        if settings is None:
            hint = "copy modules.json and the folders that it names from the original, or use --task feature-extraction"
            raise ConfigError(f"{folder}: no modules.json, so nothing says how vectors are joined", hint=hint)
        self.settings: SentenceSettings = settings

    @property
    def longest(self) -> int | None:
        """As sentence_bert_config.json says, at most what the model reads."""
        limits = [size for size in (self.settings.max_length, super().longest) if size is not None]
        return min(limits, default=None)

    @property
    def bounded(self) -> bool:
        """Always: sentence-transformers reads nothing beyond, whatever the model could."""
        return True

    def run(self, inputs: Sequence[str], options: SentenceOptions, on_done: Callable[[int], object]) -> list[Any]:
        """A list of numbers for each text."""
        prompt = self._prompt(options.prompt_name)
        texts = [prompt + text if isinstance(text, str) else text for text in inputs]
        if self.settings.lower:
            texts = [text.lower() if isinstance(text, str) else text for text in texts]
        skipped = 0 if self.settings.include_prompt or not prompt else self._length(prompt)
        vectors: list[Any] = [None] * len(inputs)
        for batch in self.batches(self.encode(texts, options), options.batch_size):
            for place, vector in zip(batch.places, self._joined(batch, skipped), strict=True):
                vectors[place] = vector.tolist()
            on_done(len(batch.places))
        return vectors

    def _joined(self, batch: Batch, skipped: int) -> Array:
        text = mask_of(batch)
        counted = np.where(np.cumsum(text, axis=1) <= skipped, 0, text)
        found = pooled(states_of(batch), counted, self.settings.poolings, text)
        for layer in self.settings.dense:
            found = layer(found)
        if self.settings.normalize:
            found = found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12)
        return found

    def _prompt(self, name: str | None) -> str:
        chosen = name if name is not None else self.settings.default_prompt
        if chosen is None:
            return ""
        if chosen not in self.settings.prompts:
            known = ", ".join(self.settings.prompts) or "none"
            raise UsageError(f"--prompt-name {chosen!r}: this model has {known}", hint="write the words into the text")
        return self.settings.prompts[chosen]

    def _length(self, prompt: str) -> int:
        """Tokens of a prompt by itself, the ending ones not counted, as sentence-transformers counts."""
        ids = self.tokenizer(prompt)["input_ids"]
        ends = [token for token in (self.tokenizer.sep_token_id, self.tokenizer.eos_token_id) if token is not None]
        return len(ids) - 1 if ids and ids[-1] in ends else len(ids)

    def write(self, results: Sequence[Any], options: Any) -> list[str]:
        """The vectors."""
        return write_vectors(results, options.output)

    def lines(self, inputs: Sequence[str], results: Sequence[Any], options: Any) -> Iterator[str]:
        """The size and first numbers of each vector, or how alike they are."""
        return vector_lines(inputs, results, options.similarity)

    def compare(self, ours: Any, theirs: Any) -> Difference:
        """All numbers."""
        return compare_vectors(ours, theirs)


PIPELINE = SentenceSimilarity
