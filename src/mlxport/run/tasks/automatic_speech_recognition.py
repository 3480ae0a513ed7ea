"""What is said in a recording, by a model that names a letter for each moment (CTC)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.errors import SourceError, UsageError
from mlxport.run.media.sound import Samples, read_sound
from mlxport.run.tasks.pipeline import Array, Difference, Pipeline, as_numpy
from mlxport.run.tasks.task_options import SpeechOptions
from mlxport.source.tokenizer_loading import load_tokenizer, reason, refusing

__all__ = ["SpeechRecognition"]

_SHARE = 6  # of a piece, that each of its ends lies in the next one, as transformers' pipeline


class SpeechRecognition(Pipeline):
    """``automatic-speech-recognition``: the text of each recording, of models with a CTC head."""

    task = "automatic-speech-recognition"
    reads = "sound"
    summary = "writes what is said in each recording"
    options = SpeechOptions

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        super().__init__(folder, trust_remote_code=trust_remote_code)
        self.tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        self.extractor = _feature_extractor(folder)
        self._takes = tuple(inspect.signature(type(self.model).__call__).parameters)[1:]

    @property
    def step(self) -> int:
        """Samples between two letters."""
        strides = self.config.get("conv_stride")
        return int(np.prod(strides)) if isinstance(strides, list) and strides else 1

    def run(self, inputs: Sequence[Any], options: SpeechOptions, on_done: Callable[[int], object]) -> list[Any]:
        """``{"text": …}`` for each recording."""
        results = []
        for given in inputs:
            samples = read_sound(given, int(self.extractor.sampling_rate))
            ids = np.concatenate([self._letters(*piece) for piece in self._pieces(samples, options.chunk_length)])
            text = self.tokenizer.decode(ids, skip_special_tokens=False)
            results.append({"text": text})
            on_done(1)
        return results

    def _pieces(self, samples: Samples, seconds: float) -> Iterator[tuple[Samples, int, int]]:
        """A recording in pieces, and how many samples at both ends of each belong to its neighbours."""
        rate = int(self.extractor.sampling_rate)
        length = round(seconds * rate / self.step) * self.step
        if len(samples) <= length:
            yield samples, 0, 0
            return
        overlap = round(seconds / _SHARE * rate / self.step) * self.step
        for start in range(0, len(samples), length - 2 * overlap):
            piece = samples[start : start + length]
            last = start + length >= len(samples)
            left = overlap if start else 0
            if len(piece) > left:
                yield piece, left, 0 if last else overlap
            if last:
                return

    def _letters(self, piece: Samples, left: int, right: int) -> Array:
        """The most likely letter at each moment that is this piece's own, int64, [moments]."""
        made = self.extractor(piece, sampling_rate=int(self.extractor.sampling_rate), return_tensors="np")
        given = {name: mx.array(made[name]) for name in self._takes if name in made}
        if missing := [name for name in self._takes if name not in given]:
            if missing != ["attention_mask"]:
                hint = "call it from Python: mlxport.load(DST)(...)"
                raise UsageError(f"this model also reads {', '.join(missing)}, which no sound gives", hint=hint)
            given["attention_mask"] = mx.ones(next(iter(given.values())).shape[:2], mx.int64)
        try:
            outputs = self.model(**given)
        except ValueError as error:  # of the port's own check of its inputs
            seconds = len(piece) / int(self.extractor.sampling_rate)
            hint = "give a longer recording"
            raise UsageError(f"a sound of {seconds:.2f} s is not taken: {error}", hint=hint) from error
        letters = as_numpy(outputs["logits"])[0].argmax(-1)
        count = round(len(piece) / self.step)
        first, rest = round(left / len(piece) * count), round(right / len(piece) * count)
        return np.asarray(letters[first : count - rest if right else len(letters)])

    def lines(self, inputs: Sequence[Any], results: Sequence[Any], options: Any) -> Iterator[str]:
        """The texts."""
        for given, result in zip(inputs, results, strict=True):
            yield f"{given}: {result['text']}" if len(inputs) > 1 else result["text"]

    def examples(self) -> list[Any]:
        """Made sounds of three lengths: tones that slide, with breath between them."""
        rate = int(self.extractor.sampling_rate)
        return [_voice(seconds, rate, index) for index, seconds in enumerate((1.0, 2.3, 0.7))]

    def for_reference(self, example: Any) -> Any:
        """Samples with their rate."""
        return {"raw": example, "sampling_rate": int(self.extractor.sampling_rate)}

    def compare(self, ours: Any, theirs: Any) -> Difference:
        """The text."""
        mine, other = ours["text"], theirs["text"]
        return Difference("text", 0.0, "" if mine == other else f"{mine!r} where the original writes {other!r}")


PIPELINE = SpeechRecognition


def _feature_extractor(folder: Path) -> Any:
    from transformers import AutoFeatureExtractor

    hint = "copy preprocessor_config.json of the original model into the folder"
    if not (folder / "preprocessor_config.json").is_file() and not (folder / "processor_config.json").is_file():
        raise SourceError(f"{folder} does not say how sound is prepared: no preprocessor_config.json", hint=hint)

    def failed(error: BaseException) -> SourceError:
        return SourceError(f"the feature extractor of {folder} does not load: {reason(error)}", hint=hint)

    with refusing(failed):
        return AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _voice(seconds: float, rate: int, seed: int) -> Samples:
    time = np.arange(int(seconds * rate)) / rate
    pitch = 110 + 40 * np.sin(2 * np.pi * (1.3 + seed) * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tone = sum(np.sin(phase * k) / k for k in (1, 2, 3, 5))
    noise = np.random.default_rng(seed).standard_normal(len(time))
    loud = np.clip(np.sin(2 * np.pi * 2.1 * time), 0, 1)
    return np.asarray(0.3 * tone * loud + 0.02 * noise, np.float32)
