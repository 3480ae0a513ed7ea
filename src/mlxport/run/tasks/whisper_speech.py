"""Whisper, by mlx-whisper's own ``transcribe``, on samples that are read here: no ffmpeg is needed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxport.errors import ConfigError, MlxportError, UsageError, WeightsError
from mlxport.run.media.extras import needed
from mlxport.run.media.sound import Samples
from mlxport.run.tasks.recognizer import Recognizer
from mlxport.run.tasks.task_options import SPEECH_TASKS, SpeechOptions
from mlxport.run.tasks.whisper_times import with_times_in_order
from mlxport.source.jsonfile import read_object
from mlxport.source.tokenizer_loading import reason, refusing
from mlxport.transform import float32

__all__ = ["WhisperSpeech"]

_WINDOW = 30  # seconds that are heard at once
_COMPARED = 64  # tokens that are compared with the original's, at most
_NAMED = 12  # languages, in an error
_TRANSCRIBE, _TRANSLATE = SPEECH_TASKS


class WhisperSpeech(Recognizer):
    """A folder of mlx-whisper's layout, whoever wrote it."""

    refused: ClassVar[Mapping[str, str]] = {"chunk_length": f"Whisper hears {_WINDOW} seconds at a time"}

    def __init__(self, folder: Path, config: Mapping[str, Any], trust_remote_code: bool) -> None:
        what = "transcribing with Whisper"
        self._module = needed("mlx_whisper.transcribe", "whisper", what)
        loading = needed("mlx_whisper.load_models", "whisper", what)
        self._languages = needed("mlx_whisper.tokenizer", "whisper", what)
        self._folder, self.rate = folder, int(self._module.SAMPLE_RATE)

        def failed(error: BaseException) -> MlxportError:
            hint = "convert or fetch the model again"
            return WeightsError(f"{folder}: mlx-whisper cannot load it: {reason(error)}", hint=hint)

        with refusing(failed):
            # The table of positions is made in this dtype: it is rounded as the original's is.
            self.model = loading.load_model(str(folder), dtype=mx.float16)
            if self.model.decoder.ln.weight.dtype != mx.float16:
                self.model = loading.load_model(str(folder), dtype=mx.float32)
        if mx.default_device() == mx.Device(mx.cpu):  # where half precision is many times slower
            self.model.update(tree_map(float32, self.model.parameters()))
            self.model.encoder._positional_embedding = float32(self.model.encoder._positional_embedding)
        half = self.model.decoder.ln.weight.dtype == mx.float16
        self._settings = {"fp16": half, **_suppressed(folder)}

    @property
    def reference(self) -> Mapping[str, Any]:  # type: ignore[override]
        """As ``compared`` does it."""
        spoken = {"language": "en", "task": _TRANSCRIBE} if self.model.is_multilingual else {}
        return {"generate_kwargs": {"max_new_tokens": _COMPARED, "num_beams": 1, **spoken}}  # a pipeline takes five

    def hear(self, samples: Samples, options: SpeechOptions, show: bool) -> dict[str, Any]:
        """``{"text": …}``, with ``chunks`` where times are asked for, and what ``--format json`` shows."""
        task = options.task_name
        language = self._language(options.language, task)
        # As transformers: the times are written along where there is more than one window, or where they are wanted.
        times = options.word_timestamps or options.format != "txt" or len(samples) > _WINDOW * self.rate
        heard = samples if times else self._with_silence(samples)
        made = self._transcribed(
            heard, show, language=language, task=task, word_timestamps=options.word_timestamps,
            without_timestamps=not times,
        )  # fmt: skip
        result: dict[str, Any] = {"text": made["text"]}
        if options.word_timestamps or options.format in ("srt", "vtt"):
            result["chunks"] = _chunks(made["segments"], options.word_timestamps)
        if options.format == "json":
            result |= {"language": made["language"], "segments": _plain(made["segments"])}
        return result

    def compared(self, samples: Samples) -> dict[str, Any]:
        """What the likeliest tokens say, without a second try and without times, as transformers does it."""
        language = "en" if self.model.is_multilingual else None
        heard = self._with_silence(samples)
        made = self._transcribed(
            heard, False, language=language, task=_TRANSCRIBE, without_timestamps=True, temperature=0.0,
            compression_ratio_threshold=None, logprob_threshold=None, no_speech_threshold=None, sample_len=_COMPARED,
        )  # fmt: skip
        return {"text": made["text"]}

    def _with_silence(self, samples: Samples) -> Samples:
        """A whole window: mlx-whisper would end with features of 0, transformers with those of silence."""
        return np.pad(samples, (0, max(0, _WINDOW * self.rate - len(samples))))

    def _transcribed(self, samples: Samples, show: bool, **given: Any) -> dict[str, Any]:
        """``mlx_whisper.transcribe``, which finds the model of this folder where it looks for the last that it had."""
        holder = self._module.ModelHolder
        holder.model, holder.model_path = self.model, str(self._folder)
        with (
            with_times_in_order(self.model),
            contextlib.redirect_stdout(sys.stderr),  # it names the language that it has heard
        ):
            found: dict[str, Any] = self._module.transcribe(
                samples, path_or_hf_repo=str(self._folder), verbose=False if show else None, **self._settings, **given
            )
        return found

    def _language(self, given: str | None, task: str) -> str | None:
        """The code of a language by its code or name; None lets the model hear which it is."""
        known: Mapping[str, str] = self._languages.LANGUAGES
        code = None
        if given is not None:
            name = given.strip().lower()
            code = name if name in known else self._languages.TO_LANGUAGE_CODE.get(name)
            if code is None:
                some = ", ".join(f"{short} ({long})" for short, long in list(known.items())[:_NAMED])
                raise UsageError(
                    f"--language {given!r} is none that Whisper knows",
                    hint=f"one of {some} … or {len(known) - _NAMED} others",
                )
        if self.model.is_multilingual:
            return code
        if code not in (None, "en"):
            hint = "convert a model for several languages, as openai/whisper-tiny"
            raise UsageError(f"--language {given}: this model hears English only", hint=hint)
        if task == _TRANSLATE:
            hint = "convert a model for several languages, as openai/whisper-tiny"
            said = f"{self.flag('task_name')} {task}: this model hears English only, and writes that"
            raise UsageError(said, hint=hint)
        return None


def _suppressed(folder: Path) -> dict[str, Any]:
    """Which tokens are never written, where generation_config.json says so: a fine-tuned model has its own."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    settings, found = read_object(path, ConfigError, unique=False), dict[str, Any]()
    never = settings.get("suppress_tokens")
    if isinstance(never, list) and all(type(token) is int for token in never):
        found["suppress_tokens"] = never
    if "begin_suppress_tokens" in settings and not settings["begin_suppress_tokens"]:
        found["suppress_blank"] = False
    return found


def _chunks(segments: list[dict[str, Any]], words: bool) -> list[dict[str, Any]]:
    """Text with the seconds that it begins and ends at, as transformers' pipeline has it."""
    parts = [word for segment in segments for word in segment["words"]] if words else segments
    times = [[round(float(part[key]), 2) for key in ("start", "end")] for part in parts]
    return [
        {"timestamp": time, "text": part["word" if words else "text"]} for time, part in zip(times, parts, strict=True)
    ]


def _plain(value: Any) -> Any:
    """A value with NumPy's numbers as Python's."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
