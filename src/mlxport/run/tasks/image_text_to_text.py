"""Pictures and a question in, text out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mlxport.errors import UsageError
from mlxport.run.generate import read_prompt
from mlxport.run.media.pictures import read_picture
from mlxport.run.sampling import MAX_TOKENS, Sampling
from mlxport.run.tasks.pipeline import Difference, Pipeline, compare_texts
from mlxport.run.tasks.task_options import ImageTextOptions
from mlxport.run.vision_language import VisionLanguage, load_vision_language

__all__ = ["ImageTextToText"]


class ImageTextToText(Pipeline):
    """``image-text-to-text``: what a model says of pictures.

    An input is a picture, with ``prompt`` as an option, or ``{"images": [...], "text": "..."}``.
    """

    task = "image-text-to-text"
    reads = "picture"
    options = ImageTextOptions
    also = '--prompt "What is to be seen?"'
    also_in_python = ', prompt="What is to be seen?"'

    def _model(self) -> VisionLanguage:
        return load_vision_language(self.folder, trust_remote_code=self.trust_remote_code)

    def gathered(self, inputs: Sequence[Any], options: Any) -> list[Any]:
        """Questions as they are; pictures, those of ``--image`` too, are all of one question."""
        asked = [given for given in inputs if isinstance(given, Mapping)]
        pictures = [given for given in inputs if not isinstance(given, Mapping)] + list(options.image or ())
        if asked and not pictures:
            return asked
        return [*asked, self._question(pictures, options)]

    def _question(self, pictures: Sequence[Any], options: ImageTextOptions) -> dict[str, Any]:
        if options.prompt is None:
            raise UsageError(f"{self.task} needs a --prompt", hint=f"mlxport run {self.folder} picture.jpg {self.also}")
        return {"images": list(pictures), "text": read_prompt(options.prompt)}

    def run(self, inputs: Sequence[Any], options: ImageTextOptions, on_done: Callable[[int], object]) -> list[Any]:
        """``[{"input_text": …, "generated_text": …}]`` for each: what was asked, and the answer alone."""
        results = []
        for item in inputs:
            given = item if isinstance(item, Mapping) else self._question([item], options)
            results.append([{"input_text": given["text"], "generated_text": self._answer(given, options)}])
            on_done(1)
        return results

    def _answer(self, given: Mapping[str, Any], options: ImageTextOptions) -> str:
        images = given.get("images") or ()
        pictures = [read_picture(image) for image in (images if isinstance(images, (list, tuple)) else [images])]
        prompt = str(given["text"])
        if not prompt.strip():
            raise UsageError("the prompt is empty", hint=f"ask something: {self.also}")
        most = MAX_TOKENS if options.max_tokens is None else options.max_tokens
        sampling = Sampling(most, options.temp, options.top_p, options.min_p, options.top_k, options.seed)
        if not options.ignore_chat_template:
            prompt = self.model.prompt(prompt, len(pictures), options.system_prompt)
        sampling.seed_random()
        pieces = self.model.stream(
            self.model.inputs(prompt, pictures),
            max_tokens=sampling.max_tokens, temperature=sampling.temp, top_p=sampling.top_p, min_p=sampling.min_p,
            top_k=sampling.top_k,
        )  # fmt: skip
        return "".join(piece.text for piece in pieces)

    def lines(self, inputs: Sequence[Any], results: Sequence[Any], options: Any) -> Iterator[str]:
        """The answers."""
        return (result[0]["generated_text"] for result in results)

    def examples(self) -> list[Any]:
        """None: verification compares logits of text and of pictures, and the tokens of an answer."""
        return []

    def compare(self, ours: Any, theirs: Any) -> Difference:
        """The text."""
        return compare_texts(ours[0]["generated_text"], theirs[0]["generated_text"])


PIPELINE = ImageTextToText
