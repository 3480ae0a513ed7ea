"""Vectors of texts: of their tokens, or one for each text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlxport.errors import UsageError
from mlxport.run.tasks.pipeline import Difference
from mlxport.run.tasks.pooling import pooled
from mlxport.run.tasks.task_options import FeatureOptions
from mlxport.run.tasks.text_inputs import TextPipeline
from mlxport.run.tasks.vectors import compare_vectors, mask_of, states_of, vector_lines, write_vectors

__all__ = ["FeatureExtraction"]


class FeatureExtraction(TextPipeline):
    """``feature-extraction``: the states of the last layer, [1, tokens, width] of each text, or a vector of each."""

    task = "feature-extraction"
    options = FeatureOptions
    also_runs = ("sentence-similarity",)

    def run(self, inputs: Sequence[str], options: FeatureOptions, on_done: Callable[[int], object]) -> list[Any]:
        """Nested lists as transformers' pipeline makes them; with ``pooling`` a list of numbers for each text."""
        if options.similarity and options.pooling == "none":
            raise UsageError("--similarity compares one vector of each text", hint="add --pooling mean")
        results: list[Any] = [None] * len(inputs)
        for batch in self.batches(self.encode(inputs, options), options.batch_size):
            states, mask = states_of(batch), mask_of(batch)
            for index, place in enumerate(batch.places):
                counted = mask[index].astype(bool)
                if options.pooling == "none":
                    results[place] = states[index][counted][None]
                else:
                    results[place] = pooled(states[index : index + 1], mask[index : index + 1], (options.pooling,))[0]
            on_done(len(batch.places))
        return [found.tolist() for found in results]

    def write(self, results: Sequence[Any], options: Any) -> list[str]:
        """The vectors."""
        return write_vectors(results, options.output)

    def lines(self, inputs: Sequence[str], results: Sequence[Any], options: Any) -> Iterator[str]:
        """The size and first numbers of each vector, or how alike they are."""
        return vector_lines(inputs, results, options.similarity)

    def compare(self, ours: Any, theirs: Any) -> Difference:
        """All numbers."""
        return compare_vectors(ours, theirs)


PIPELINE = FeatureExtraction
