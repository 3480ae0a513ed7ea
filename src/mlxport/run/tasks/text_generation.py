"""Texts that go on, or answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlxport.errors import UsageError
from mlxport.run.generate import generate
from mlxport.run.load import LoadedModel, load
from mlxport.run.tasks.pipeline import Difference, Pipeline, compare_texts
from mlxport.run.tasks.task_options import GenerationOptions

__all__ = ["TextGeneration"]


class TextGeneration(Pipeline):
    """``text-generation``: what follows each prompt, or with a chat template the answer to it."""

    task = "text-generation"
    reads = "text"
    options = GenerationOptions

    def _model(self) -> LoadedModel:
        return load(self.folder, trust_remote_code=self.trust_remote_code)

    def run(self, inputs: Sequence[str], options: GenerationOptions, on_done: Callable[[int], object]) -> list[Any]:
        """``[{"generated_text": …}]`` for each prompt: what was generated, without the prompt."""
        if any(not prompt.strip() for prompt in inputs):
            raise UsageError("a text is empty", hint="give one that says something")
        results = []
        for prompt in inputs:
            result = generate(self.model, prompt, **vars(options))
            results.append([{"generated_text": result.text}])
            on_done(1)
        return results

    def lines(self, inputs: Sequence[str], results: Sequence[Any], options: Any) -> Iterator[str]:
        """The texts; before each its prompt, where there are several."""
        for prompt, result in zip(inputs, results, strict=True):
            if len(inputs) > 1:
                yield f"{prompt}:"
            yield result[0]["generated_text"]

    def examples(self) -> list[Any]:
        """None: verification compares logits and tokens of what is generated."""
        return []

    def compare(self, ours: Any, theirs: Any) -> Difference:
        """The text."""
        return compare_texts(ours[0]["generated_text"], theirs[0]["generated_text"])


PIPELINE = TextGeneration
