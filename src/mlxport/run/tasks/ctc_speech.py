"""Models that name a letter for each moment (CTC)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from mlxport.layouts.generated.loading import load_port
from mlxport.run.media.sound import Samples
from mlxport.run.tasks.pipeline import Array, as_numpy
from mlxport.run.tasks.port_call import call_port
from mlxport.run.tasks.recognizer import Recognizer, feature_extractor
from mlxport.run.tasks.task_options import SpeechOptions
from mlxport.source.tokenizer_loading import load_tokenizer

__all__ = ["CTCSpeech"]

_SHARE = 6  # of a piece, that each of its ends lies in the next one, as transformers' pipeline
_LETTERS = "a model with a CTC head names letters of the language that it was trained on"


class CTCSpeech(Recognizer):
    """A port of Wav2Vec2, HuBERT or WavLM with a CTC head."""

    refused: ClassVar[Mapping[str, str]] = {
        "language": _LETTERS,
        "task_name": _LETTERS,
        "word_timestamps": "a model with a CTC head is run for its text alone",
        "format": "a model with a CTC head is run for its text alone",
    }

    def __init__(self, folder: Path, config: Mapping[str, Any], trust_remote_code: bool) -> None:
        self.model = load_port(folder, trust_remote_code=trust_remote_code)
        self.tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        self.extractor = feature_extractor(folder)
        self.rate = int(self.extractor.sampling_rate)
        strides = config.get("conv_stride")
        self._step = int(np.prod(strides)) if isinstance(strides, list) and strides else 1

    def hear(self, samples: Samples, options: SpeechOptions, show: bool) -> dict[str, Any]:
        """``{"text": …}``."""
        ids = np.concatenate([self._letters(*piece) for piece in self._pieces(samples, options.chunk_length)])
        return {"text": self.tokenizer.decode(ids, skip_special_tokens=False)}

    def _pieces(self, samples: Samples, seconds: float) -> Iterator[tuple[Samples, int, int]]:
        """A recording in pieces, and how many samples at both ends of each belong to its neighbours."""
        length = round(seconds * self.rate / self._step) * self._step
        if len(samples) <= length:
            yield samples, 0, 0
            return
        overlap = round(seconds / _SHARE * self.rate / self._step) * self._step
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
        made = self.extractor(piece, sampling_rate=self.rate, return_tensors="np")
        outputs = call_port(
            self.model, made, reads="sound", refused=f"a sound of {len(piece) / self.rate:.2f} s is not taken",
            hint="give a longer recording",
            supplied={"attention_mask": lambda sound: mx.ones(sound.shape[:2], mx.int64)},
        )  # fmt: skip
        letters = as_numpy(outputs["logits"])[0].argmax(-1)
        count = round(len(piece) / self._step)
        first, rest = round(left / len(piece) * count), round(right / len(piece) * count)
        return np.asarray(letters[first : count - rest if right else len(letters)])
