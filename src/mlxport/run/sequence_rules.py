"""What generation_config.json says of the tokens that a decoder writes, as transformers applies it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxport.errors import ConfigError
from mlxport.run.beam_search import BeamSettings
from mlxport.run.sampling import MAX_TOKENS
from mlxport.source.jsonfile import read_object

__all__ = ["SequenceRules", "read_rules"]

# Settings that are not applied, with the values that turn them off.
_NOT_APPLIED = {
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "sequence_bias": (None,),
    "guidance_scale": (None, 1.0),
    "remove_invalid_values": (None, False),
    "num_beam_groups": (None, 1),
    "diversity_penalty": (None, 0.0),
    "watermarking_config": (None,),
}
Rule = Callable[[Sequence[int], mx.array], mx.array]


@dataclass(frozen=True)
class SequenceRules:
    """How a decoder begins, and what it may write.

    Attributes:
        settings: generation_config.json, or the config of a model that has none.
        ends: Ids that end a text.
        max_tokens: Most tokens that are to be written.
    """

    settings: Mapping[str, Any]
    ends: tuple[int, ...]
    max_tokens: int

    def start(self) -> int:
        """The token that every text begins with.

        Raises:
            ConfigError: None is named.
        """
        names = ("decoder_start_token_id", "bos_token_id")
        found = next((self.settings[name] for name in names if self.settings.get(name) is not None), None)
        if not isinstance(found, int) or isinstance(found, bool):
            raise _wrong("decoder_start_token_id", found, "the id of one token")
        return found

    def processors(self) -> list[Callable[[mx.array, mx.array], mx.array]]:
        """For mlx-lm's ``generate_step``: from the tokens so far, the first included, and logits to logits."""
        rules = self.rules()

        def apply(tokens: mx.array, logits: mx.array) -> mx.array:
            written: list[int] = tokens.tolist()  # type: ignore[assignment]
            for rule in rules:
                logits = rule(written, logits)
            return logits

        return [apply] if rules else []

    def not_applied(self) -> list[str]:
        """Settings that change what transformers writes, and are not applied here."""
        return [name for name, off in _NOT_APPLIED.items() if self.settings.get(name) not in off]

    def rules(self) -> list[Rule]:
        """From the tokens so far, the first included, and scores [1, vocabulary] to scores, in transformers' order."""
        return list(self._rules())

    def beams(self, asked: int | None) -> BeamSettings:
        """How beams are searched; ``asked`` for so many, by the settings where that is None.

        Raises:
            ConfigError: A setting is of another kind than transformers has it.
        """
        count = self._setting("num_beams", 1, int) if asked is None else asked
        early = self.settings.get("early_stopping") or False
        if early not in (True, False, "never"):
            raise _wrong("early_stopping", early, 'true, false or "never"')
        penalty = self._setting("length_penalty", 1.0, (int, float))
        return BeamSettings(count, float(penalty), early, self.settings.get("renormalize_logits") is True)

    def longest(self) -> int | None:
        """Most tokens of a text by the settings, the first not counted; None where they do not say.

        Raises:
            ConfigError: The setting is no number.
        """
        if (new := self._setting("max_new_tokens", 0, int)) > 0:
            return int(new)
        most = self._setting("max_length", 0, int)
        return int(most) - 1 if most > 1 else None

    def _setting(self, name: str, default: Any, kind: Any) -> Any:
        value = self.settings.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, kind) or (value < 1 and name == "num_beams"):
            raise _wrong(name, value, "a number")
        return value

    def _rules(self) -> Iterator[Rule]:
        get = self.settings.get
        if (penalty := get("repetition_penalty")) not in (None, 1.0):
            yield lambda written, logits: _penalized(written, logits, float(penalty))
        if size := get("no_repeat_ngram_size"):
            yield lambda written, logits: _without(logits, _repeating(written, int(size)))
        if bad := get("bad_words_ids"):
            words = [word for word in bad if word not in [[end] for end in self.ends]]
            yield lambda written, logits: _without(logits, _completing(written, words))
        shortest = max(int(get("min_length") or 0), 1 + int(get("min_new_tokens") or 0))
        if shortest > 1:
            yield lambda written, logits: _without(logits, self.ends if len(written) < shortest else ())
        if (first := get("forced_bos_token_id")) is not None:
            yield lambda written, logits: _only(logits, [first]) if len(written) == 1 else logits
        if (last := get("forced_eos_token_id")) is not None:
            ends = last if isinstance(last, list) else [last]
            yield lambda written, logits: _only(logits, ends) if len(written) == self.max_tokens else logits
        if never := get("suppress_tokens"):
            yield lambda written, logits: _without(logits, never)
        if not_first := get("begin_suppress_tokens"):
            begin = 1 if get("forced_bos_token_id") is None else 2
            yield lambda written, logits: _without(logits, not_first if len(written) == begin else ())


def read_rules(folder: Path, ends: Sequence[int], max_tokens: int | None, given: Mapping[str, Any]) -> SequenceRules:
    """The rules of a folder, by its generation_config.json, else by its config.json.

    Args:
        folder: Of the model.
        ends: Ids that end a text.
        max_tokens: Most tokens that are to be written; None is what the settings say, else ``MAX_TOKENS``.
        given: Settings that hold instead of those of the folder.

    Raises:
        ConfigError: Neither can be read.
    """
    names = ("generation_config.json", "config.json")
    path = next(folder / name for name in names if name == names[-1] or (folder / name).is_file())
    settings = {**read_object(path, ConfigError, unique=False), **given}
    rules = SequenceRules(settings, tuple(sorted(ends)), max_tokens or MAX_TOKENS)
    longest = rules.longest() if max_tokens is None else None
    return rules if longest is None else replace(rules, max_tokens=longest)


def _wrong(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(
        f"generation_config.json: {name} is {value!r}, expected {expected}",
        hint="get generation_config.json again from where the weights are from",
    )


def _without(logits: mx.array, tokens: Sequence[int]) -> mx.array:
    inside = sorted({token for token in tokens if 0 <= token < logits.shape[-1]})
    if not inside:
        return logits
    return mx.put_along_axis(logits, mx.array([inside]), mx.array(-math.inf, logits.dtype), axis=-1)


def _only(logits: mx.array, tokens: Sequence[int]) -> mx.array:
    nothing = mx.full(logits.shape, -math.inf, logits.dtype)
    return mx.put_along_axis(nothing, mx.array([list(tokens)]), mx.array(0.0, logits.dtype), axis=-1)


def _penalized(written: Sequence[int], logits: mx.array, penalty: float) -> mx.array:
    index = mx.array([sorted(set(written))])
    held = mx.take_along_axis(logits, index, axis=-1)
    return mx.put_along_axis(logits, index, mx.where(held < 0, held * penalty, held / penalty), axis=-1)


def _repeating(written: Sequence[int], size: int) -> list[int]:
    """Tokens that would make the last ``size`` tokens some that were written before."""
    if len(written) + 1 < size:
        return []
    before = list(written[len(written) - size + 1 :]) if size > 1 else []
    starts = range(len(written) - size + 1)
    return [written[start + size - 1] for start in starts if list(written[start : start + size - 1]) == before]


def _completing(written: Sequence[int], words: Sequence[Sequence[int]]) -> list[int]:
    """Last tokens of the words that all but this have been written of."""
    return [
        word[-1]
        for word in words
        if len(word) <= len(written) + 1 and list(written[len(written) - len(word) + 1 :]) == list(word[:-1])
    ]
