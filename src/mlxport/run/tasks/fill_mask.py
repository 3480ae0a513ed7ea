"""What stands behind a mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mlxport.errors import TokenizerError, UsageError
from mlxport.run.tasks.labels import compare_labels, softmax
from mlxport.run.tasks.pipeline import Array, Difference, as_numpy
from mlxport.run.tasks.task_options import FillMaskOptions
from mlxport.run.tasks.text_inputs import TEXTS, TextPipeline

__all__ = ["FillMask"]


class FillMask(TextPipeline):
    """``fill-mask``: the most likely tokens for each mask of a text."""

    task = "fill-mask"
    options = FillMaskOptions

    def __init__(self, folder: Any, *, trust_remote_code: bool = False) -> None:
        super().__init__(folder, trust_remote_code=trust_remote_code)
        if self.tokenizer.mask_token_id is None:
            hint = "copy tokenizer.json and tokenizer_config.json of the original model into the folder"
            raise TokenizerError(f"the tokenizer of {folder} has no mask", hint=hint)

    def run(self, inputs: Sequence[str], options: FillMaskOptions, on_done: Callable[[int], object]) -> list[Any]:
        """For each text a list of the best tokens; with several masks a list of such lists."""
        mask = self.tokenizer.mask_token_id
        made = self.encode(inputs, options)
        for text, ids in zip(inputs, made["input_ids"], strict=True):
            if mask not in ids:
                hint = f"write {self.tokenizer.mask_token} where a word is wanted"
                raise UsageError(f"there is no mask in {text[:80]!r}", hint=hint)
        results: list[Any] = [None] * len(inputs)
        for batch in self.batches(made, options.batch_size):
            logits = as_numpy(batch.outputs["logits"])
            for index, place in enumerate(batch.places):
                ids = batch.inputs["input_ids"][index]
                at = np.flatnonzero(ids == mask)
                rows = [
                    self._best(ids, int(where), softmax(logits[index, where]), options.top_k, len(at)) for where in at
                ]
                results[place] = rows[0] if len(rows) == 1 else rows
            on_done(len(batch.places))
        return results

    def _best(self, ids: Array, where: int, found: Array, top_k: int, masks: int) -> list[dict[str, Any]]:
        rows = []
        for token in np.argsort(-found, kind="stable")[:top_k]:
            filled = ids.copy()
            filled[where] = token
            filled = filled[filled != self.tokenizer.pad_token_id]
            sequence = self.tokenizer.decode(filled, skip_special_tokens=masks == 1)
            word = self.tokenizer.decode([int(token)])
            rows.append({"score": float(found[token]), "token": int(token), "token_str": word, "sequence": sequence})
        return rows

    def lines(self, inputs: Sequence[str], results: Sequence[Any], options: Any) -> Iterator[str]:
        """A line for each token and what the text becomes with it."""
        for text, result in zip(inputs, results, strict=True):
            if len(inputs) > 1:
                yield f"{text}:"
            for row in [result] if isinstance(result[0], dict) else result:
                for entry in row:
                    yield f"{entry['score']:8.4f}  {entry['token_str'].strip():16}  {entry['sequence']}"

    def examples(self) -> list[Any]:
        """Texts with one word masked, and one with two."""
        mask = self.tokenizer.mask_token
        made = [*(" ".join([*text.split()[:-1], mask]) for text in TEXTS[:3]), f"{mask} is the {mask} of France."]
        return [text for text in made if self.fits(text)] or [mask]

    def compare(self, ours: Any, theirs: Any) -> Difference:
        """The tokens and their scores; of several masks those of the first that differs most."""
        if isinstance(ours[0], dict):
            return compare_labels(ours, theirs, "token")
        found = [compare_labels(mine, other, "token") for mine, other in zip(ours, theirs, strict=True)]
        return max(found, key=lambda item: (bool(item.wrong), item.error))


PIPELINE = FillMask
