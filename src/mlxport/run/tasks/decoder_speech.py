"""Ports of an encoder that hears and a decoder that writes on mlx-lm's caches, as Moonshine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from mlxport.errors import ConfigError, UsageError
from mlxport.layouts.generated.loading import load_port
from mlxport.model_config import ModelConfig
from mlxport.run.media.sound import Samples
from mlxport.run.sequence_rules import SequenceRules, read_rules
from mlxport.run.tasks.recognizer import Recognizer, feature_extractor
from mlxport.run.tasks.task_options import SPEECH_TASKS, SpeechOptions
from mlxport.source.tokenizer_loading import checked_ends, load_tokenizer

__all__ = ["DecoderSpeech"]

_TEXT_ALONE = "a model with source of its own is run for its text alone"
_QUIET, _SEARCHED = 0.1, 0.2  # seconds of the pause at which a piece ends, and share of it where that is looked for


class DecoderSpeech(Recognizer):
    """A folder of the layout ``generated-speech``."""

    refused: ClassVar[Mapping[str, str]] = {"word_timestamps": _TEXT_ALONE, "format": _TEXT_ALONE}

    def __init__(self, folder: Path, config: Mapping[str, Any], trust_remote_code: bool) -> None:
        self.model = load_port(folder, trust_remote_code=trust_remote_code)
        self.tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        self.extractor = feature_extractor(folder)
        self.rate = int(self.extractor.sampling_rate)
        rules = read_rules(folder, (), None, {})
        ends = checked_ends(
            rules.settings.get("eos_token_id", config.get("eos_token_id")), f"{folder}: generation_config.json"
        )
        self._rules: SequenceRules = replace(rules, ends=tuple(sorted(ends or ())))
        self._most = ModelConfig(config).context_length

    def hear(self, samples: Samples, options: SpeechOptions, show: bool) -> dict[str, Any]:
        """``{"text": …}``."""
        texts = [self._written(piece, options) for piece in _pieces(samples, self.rate, options.chunk_length)]
        return {"text": texts[0] if len(texts) == 1 else " ".join(text.strip() for text in texts)}

    def _written(self, piece: Samples, options: SpeechOptions) -> str:
        """What the likeliest tokens say of a piece."""
        made = self.extractor(piece, sampling_rate=self.rate, return_tensors="np")
        name = next((key for key in ("input_features", "input_values") if key in made), None)
        if name is None:
            raise UsageError("the model's feature extractor gives no features of sound", hint="call it from Python")
        features = mx.array(made[name])
        begun = self._begun(features, options)
        cache = self._heard(features)
        written = [begun[-1]]  # what rules count as written: the token before the text, and the text
        new, rules = begun, self._rules.rules()
        for _ in range(self._count(len(begun))):
            logits = self.model(mx.array([new]), cache)[:, -1]
            for rule in rules:
                logits = rule(written, logits)
            token = int(logits.argmax())
            if token in self._rules.ends:
                break
            written.append(token)
            new = [token]
        return str(self.tokenizer.decode(written[1:], skip_special_tokens=True))

    def _heard(self, features: mx.array) -> list[Any]:
        """Caches that hold what the encoder has heard."""
        cache: list[Any] = self.model.make_cache()
        try:
            self.model.encode(features, cache)
        except ValueError as error:  # of the port's own check of its inputs
            hint = "give a longer recording"
            raise UsageError(f"a sound of this length is not taken: {error}", hint=hint) from error
        return cache

    def _count(self, begun: int) -> int:
        most = self._rules.max_tokens
        return most if self._most is None else min(most, self._most - begun)

    def _begun(self, features: mx.array, options: SpeechOptions) -> list[int]:
        """The tokens that a text begins with; those of Whisper name language and task."""
        get = self._rules.settings.get
        start, languages, tasks = self._rules.start(), get("lang_to_id"), get("task_to_id")
        asked = (options.language, options.task_name) != (None, SPEECH_TASKS[0])
        if not isinstance(languages, Mapping) or not isinstance(tasks, Mapping):
            if asked and (options.language not in (None, "en") or options.task_name != SPEECH_TASKS[0]):
                hint = f"leave --language and {self.flag('task_name')} out"
                raise UsageError("this model hears one language, and writes that", hint=hint)
            forced = [pair[1] for pair in get("forced_decoder_ids") or () if pair[1] is not None]
        else:
            spoken = self._spoken(features, start, languages, options.language)
            forced = [spoken, int(tasks[options.task_name])]
        silent = get("no_timestamps_token_id")
        return [start, *forced, *([silent] if isinstance(silent, int) and silent not in forced else [])]

    def _spoken(self, features: mx.array, start: int, languages: Mapping[str, int], given: str | None) -> int:
        """The token of a language: the one that was named, else the likeliest."""
        if given is not None:
            found = languages.get(f"<|{given.lower()}|>")
            if found is None:
                some = ", ".join(name.strip("<|>") for name in list(languages)[:12])
                raise UsageError(f"--language {given!r} is none that this model knows", hint=f"one of {some} …")
            return found
        if not languages:
            raise ConfigError("generation_config.json: lang_to_id is empty", hint="name one with --language")
        scores = self.model(mx.array([[start]]), self._heard(features))[0, -1]
        ids = list(languages.values())
        return ids[int(scores[mx.array(ids)].argmax())]


def _pieces(samples: Samples, rate: int, seconds: float) -> Iterator[Samples]:
    """A recording in pieces of at most ``seconds``, each but the last cut where it is quietest near its end."""
    length, pause = round(seconds * rate), max(1, round(_QUIET * rate))
    while len(samples) > length:
        first = round(length * (1 - _SEARCHED))
        loud = np.convolve(np.abs(samples[first:length]), np.ones(pause), "valid")
        end = first + int(loud.argmin()) + pause // 2
        yield samples[:end]
        samples = samples[end:]
    yield samples
