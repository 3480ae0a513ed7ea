"""The times that Whisper writes, by the rule of OpenAI and transformers: mlx-whisper's own lets them go back.

mlx-whisper 0.4.3 takes the place of the last time among the tokens for the time itself, so that it forbids nothing: an
end may lie before its start, and a window that ends at its own beginning is heard again and again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

__all__ = ["TimeRule", "with_times_in_order"]


class TimeRule:
    """Which tokens may follow, as OpenAI's ``ApplyTimestampRules``.

    Times come in pairs, none is before the last one, and a part of a text lasts; where times together are likelier
    than any word, one of them is written.

    Args:
        silent: The token that says that no times are written; those of times follow it.
        end: The token that ends a text, before all special ones.
        begin: How many tokens are given.
        latest: How many steps of 0.02 s after its beginning a window's first time may be; None for any.
    """

    def __init__(self, silent: int, end: int, begin: int, latest: int | None) -> None:
        self._silent, self._end, self._begin, self._latest = silent, end, begin, latest
        self._first = silent + 1

    def apply(self, logits: mx.array, tokens: mx.array) -> mx.array:
        """Logits of the next token, [texts, tokens], with -inf for those that may not follow ``tokens``."""
        forbidden = np.zeros(logits.shape, bool)
        for row, written in zip(forbidden, np.array(tokens), strict=True):
            self._forbid(row, written[self._begin :].tolist())
        allowed = mx.where(mx.array(forbidden), -mx.inf, logits)
        words, times = allowed[:, : self._first], allowed[:, self._first :]
        timed = mx.logsumexp(times, axis=-1, keepdims=True) > words.max(axis=-1, keepdims=True)
        return mx.concatenate([mx.where(timed, -mx.inf, words), times], axis=-1)

    def _forbid(self, row: Any, written: Sequence[int]) -> None:
        row[self._silent] = True
        if not written:
            row[: self._first] = True
            if self._latest is not None:
                row[self._first + self._latest + 1 :] = True
            return
        after_time = written[-1] >= self._first
        after_two = len(written) < 2 or written[-2] >= self._first
        if after_time and after_two:
            row[self._first :] = True
        elif after_time:
            row[: self._end] = True
        times = [token for token in written if token >= self._first]
        if times:  # the next part begins when this one ends, and ends later than it begins
            row[self._first : times[-1] + (0 if after_time and not after_two else 1)] = True


@contextmanager
def with_times_in_order(model: Any) -> Iterator[None]:
    """Let a model of mlx-whisper decode by the rule above, where it writes times."""
    from mlx_whisper.decoding import ApplyTimestampRules, DecodingTask  # type: ignore[import-untyped]

    def decode(mel: mx.array, options: Any) -> Any:
        """Of one window, [frames, mels]."""
        task = DecodingTask(model, options)
        tokenizer = task.tokenizer
        for place, rule in enumerate(task.logit_filters):
            if isinstance(rule, ApplyTimestampRules):
                latest = rule.max_initial_timestamp_index
                task.logit_filters[place] = TimeRule(tokenizer.no_timestamps, tokenizer.eot, task.sample_begin, latest)
        return task.run(mel[None])[0]

    model.decode = decode
    try:
        yield
    finally:
        del model.decode
