"""Pictures and texts side by side: which text says what is to be seen, or the vectors of either."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.errors import SourceError, UsageError
from mlxport.run.tasks.labels import compare_labels, ranked, scores
from mlxport.run.tasks.picture_inputs import PicturePipeline
from mlxport.run.tasks.pipeline import Array, Difference, as_numpy
from mlxport.run.tasks.port_call import call_port
from mlxport.run.tasks.task_options import ZeroShotImageOptions
from mlxport.run.tasks.text_inputs import TEXTS
from mlxport.run.tasks.vectors import vector_lines, write_vectors
from mlxport.run.text_encoding import encode_texts, longest_text
from mlxport.source.tokenizer_loading import load_tokenizer

__all__ = ["ZeroShotImageClassification"]

_WIDEST = 24  # letters of a text above its column
_SHORT = ("No.", "a cat", "two")  # where a model reads few tokens
_EACH_BY_ITSELF = (
    "siglip"  # in the types of models whose scores are no shares, and whose texts are always of one length
)


class _Phrase(str):
    """A text whose vector is asked for."""


class ZeroShotImageClassification(PicturePipeline):
    """``zero-shot-image-classification``: for each picture the given texts with their scores, the best first.

    Without texts the vector of each picture, without pictures that of each text: projected, not normalised.
    """

    task = "zero-shot-image-classification"
    options = ZeroShotImageOptions
    also = '--text "a cat" "a dog"'
    also_in_python = ', text=["a cat", "a dog"]'

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        super().__init__(folder, trust_remote_code=trust_remote_code)
        self.tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        self.each_by_itself = _EACH_BY_ITSELF in str(self.config.get("model_type"))

    def _model(self) -> Any:
        """The part that reads pictures; the others stand beside it."""
        from mlxport.layouts.generated.loading import load_parts

        self.parts = load_parts(self.folder, trust_remote_code=self.trust_remote_code)
        if missing := [name for name in ("image", "text", "score") if name not in self.parts]:
            hint = "convert the original again, without --layout"
            raise SourceError(f"{self.folder} has no part {missing[0]!r}, which {self.task} needs", hint=hint)
        return self.parts.image

    def gathered(self, inputs: Sequence[Any], options: ZeroShotImageOptions) -> list[Any]:
        """The pictures, those of ``image`` too; without any the texts."""
        pictures = [*inputs, *(options.image or ())]
        return pictures or [_Phrase(text) for text in options.text or ()]

    def run(self, inputs: Sequence[Any], options: ZeroShotImageOptions, on_done: Callable[[int], object]) -> list[Any]:
        """``[{"score": …, "label": …}, …]`` for each picture, or vectors."""
        if inputs and all(isinstance(given, _Phrase) for given in inputs):
            return list(self._text_vectors(list(map(str, inputs)), options, on_done).tolist())
        if options.text and options.output is not None:
            hint = "give --image or --text alone"
            raise UsageError("--output writes vectors, and pictures beside texts have scores", hint=hint)
        texts = [options.hypothesis_template.replace("{}", text) for text in options.text or ()]
        known = mx.array(self._text_vectors(texts, options)) if texts else None
        results: list[Any] = []
        for made in self.computed(inputs, options.batch_size):
            vectors: Any = made  # a part gives one array
            if known is None:
                results += as_numpy(vectors).tolist()
            else:
                logits = as_numpy(self.parts.score(image_embeds=vectors, text_embeds=known.astype(vectors.dtype)))
                found = scores(logits, self.config, "sigmoid" if self.each_by_itself else "softmax")
                results += [ranked(row, list(options.text or ()), len(texts)) for row in found]
            on_done(len(vectors))
        return results

    def _text_vectors(
        self, texts: Sequence[str], options: ZeroShotImageOptions, on_done: Callable[[int], object] = lambda done: None
    ) -> Array:
        """[texts, width], float32."""
        limit = longest_text(self.tokenizer, self.config)
        made = encode_texts(self.tokenizer, texts, limit, self.config, options.truncate)
        found = []
        for part in self.batched(len(texts), options.batch_size):
            length = limit if self.each_by_itself else max(len(ids) for ids in made["input_ids"][part])
            rows = {name: made[name][part] for name in made}
            padded = self.tokenizer.pad(rows, padding="max_length", max_length=length, return_tensors="np")
            vectors = call_port(
                self.parts.text, padded, reads="text", refused=f"{self.folder.name} does not take this text",
                hint="give a shorter one",  # what a tokenizer does not give hides nothing, and types of tokens are zero
                supplied={"attention_mask": mx.ones_like, "token_type_ids": mx.zeros_like},
            )  # fmt: skip
            found.append(as_numpy(vectors))
            on_done(len(rows["input_ids"]))
        return np.concatenate(found)

    def write(self, results: Sequence[Any], options: Any) -> list[str]:
        """Vectors, where there are no scores."""
        return write_vectors(results, options.output)

    def lines(self, inputs: Sequence[Any], results: Sequence[Any], options: ZeroShotImageOptions) -> Iterator[str]:
        """A row for each picture: its score for each text, and the best text at the end."""
        if not options.text or isinstance(inputs[0], _Phrase):
            yield from vector_lines(inputs, results, False)
            return
        widths = [max(8, min(len(text), _WIDEST)) for text in options.text]
        names = [str(given)[-2 * _WIDEST :] for given in inputs]
        first = max(map(len, names))
        heads = (f"{text[:width]:>{width}}" for text, width in zip(options.text, widths, strict=True))
        yield "  ".join([" " * first, *heads])
        for name, result in zip(names, results, strict=True):
            by_text = {entry["label"]: entry["score"] for entry in result}
            cells = (f"{by_text[text]:{width}.4f}" for text, width in zip(options.text, widths, strict=True))
            yield "  ".join([f"{name:{first}}", *cells, result[0]["label"]])

    def examples(self) -> list[Any]:
        """Drawn pictures, each to be held against the same texts."""
        limit = longest_text(self.tokenizer, self.config)
        self._asked = [
            text for text in (*TEXTS, *_SHORT) if limit is None or len(self.tokenizer(text)["input_ids"]) <= limit
        ]
        return super().examples() if self._asked else []

    def answer(self, example: Any) -> Any:
        """The scores of the texts."""
        return self(example, text=self._asked)

    def reference(self, pipeline: Callable[..., Any], example: Any) -> Any:
        """The same, of transformers' pipeline."""
        return pipeline(example, candidate_labels=self._asked, hypothesis_template="{}")

    def compare(self, ours: Any, theirs: Any) -> Difference:
        """The texts and their scores."""
        return compare_labels(ours, theirs, "label")


PIPELINE = ZeroShotImageClassification
