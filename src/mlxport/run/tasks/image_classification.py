"""Labels of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlxport.run.tasks.labels import compare_labels, label_lines, label_names, ranked, scores
from mlxport.run.tasks.picture_inputs import PicturePipeline
from mlxport.run.tasks.pipeline import Difference, as_numpy
from mlxport.run.tasks.task_options import ImageClassificationOptions

__all__ = ["ImageClassification"]


class ImageClassification(PicturePipeline):
    """``image-classification``: the best labels of each picture."""

    task = "image-classification"
    tokenizes = False
    options = ImageClassificationOptions

    def run(
        self, inputs: Sequence[Any], options: ImageClassificationOptions, on_done: Callable[[int], object]
    ) -> list[Any]:
        """A list of the best labels with their scores for each picture."""
        results: list[Any] = []
        for outputs in self.computed(inputs, options.batch_size):
            logits = as_numpy(outputs["logits"])
            found = scores(logits, self.config, options.function_to_apply)
            names = label_names(self.config, found.shape[-1])
            results += [ranked(row, names, options.top_k) for row in found]
            on_done(len(found))
        return results

    def lines(self, inputs: Sequence[Any], results: Sequence[Any], options: Any) -> Iterator[str]:
        """A line for each label."""
        return label_lines([str(given) for given in inputs], results)

    def compare(self, ours: Any, theirs: Any) -> Difference:
        """The labels and their scores."""
        return compare_labels(ours, theirs, "label")


PIPELINE = ImageClassification
