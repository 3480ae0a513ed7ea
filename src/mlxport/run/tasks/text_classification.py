"""Labels of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlxport.run.tasks.labels import compare_labels, label_lines, label_names, ranked, scores
from mlxport.run.tasks.pipeline import Difference, as_numpy
from mlxport.run.tasks.task_options import TextClassificationOptions
from mlxport.run.tasks.text_inputs import TextPipeline

__all__ = ["TextClassification"]


class TextClassification(TextPipeline):
    """``text-classification``: the best label of each text, or with ``top_k`` the best few."""

    task = "text-classification"
    options = TextClassificationOptions

    def run(
        self, inputs: Sequence[str], options: TextClassificationOptions, on_done: Callable[[int], object]
    ) -> list[Any]:
        """A label with its score for each text; a list of them where ``top_k`` is given."""
        results: list[Any] = [None] * len(inputs)
        for batch in self.batches(self.encode(inputs, options), options.batch_size):
            logits = as_numpy(batch.outputs["logits"])
            found = scores(logits, self.config, options.function_to_apply)
            names = label_names(self.config, found.shape[-1])
            for place, row in zip(batch.places, found, strict=True):
                best = ranked(row, names, options.top_k or 1)
                results[place] = best if options.top_k else best[0]
            on_done(len(batch.places))
        return results

    def alone(self, result: Any, options: TextClassificationOptions) -> Any:
        """A list, as transformers' pipeline returns it."""
        return result if options.top_k else [result]

    def lines(self, inputs: Sequence[str], results: Sequence[Any], options: Any) -> Iterator[str]:
        """A line for each label."""
        return label_lines(inputs, results)

    def compare(self, ours: Any, theirs: Any) -> Difference:
        """The label and its score."""
        return compare_labels(ours, theirs, "label")


PIPELINE = TextClassification
