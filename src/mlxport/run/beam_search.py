"""Beam search: several texts are written beside each other, and the likeliest whole one is given, as transformers does.

The beams are the rows of one batch on mlx-lm's caches. What the encoder gave is read once and the same in all rows; a
layer's own keys and values follow the beams that go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

__all__ = ["BeamSettings", "search_beams"]

_NEVER = np.float32(-1e9)  # transformers' score of what cannot be chosen
_Floats = NDArray[np.float32]
Scores = Callable[[Sequence[int], mx.array], mx.array]


@dataclass(frozen=True)
class BeamSettings:
    """How beams are searched, in transformers' words.

    Attributes:
        num_beams: Texts that are written beside each other.
        length_penalty: Power of a text's length that its score is divided by.
        early_stopping: Whether to stop at ``num_beams`` whole texts; ``"never"`` searches on while any could be better.
        renormalize_logits: Whether scores are probabilities again after the rules changed them.
    """

    num_beams: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    renormalize_logits: bool = False


def search_beams(
    model: Any,
    cache: list[Any],
    start: int,
    ends: Sequence[int],
    max_tokens: int,
    settings: BeamSettings,
    rules: Sequence[Scores] = (),
) -> list[int]:
    """The likeliest text that a search finds, the token that ends it included where one does.

    Args:
        model: Whose encoder has read a text.
        cache: Of its ``make_cache``, as ``encode`` filled it for one text; is changed.
        start: The token that every text begins with; it is not given.
        ends: Ids that end a text.
        max_tokens: Most tokens of a text, ``start`` not counted.
        settings: How it is searched.
        rules: From the tokens so far, the first included, and scores [1, vocabulary] to scores.
    """
    beams = _Beams(start, ends, max_tokens, settings)
    _change_rows(cache, mx.zeros(settings.num_beams, dtype=mx.int32))
    while not beams.done:
        logits = model(mx.array([text[-1:] for text in beams.texts]), cache)[:, -1].astype(mx.float32)
        scores = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        for rule in rules:
            scores = mx.concatenate([rule(text, scores[row : row + 1]) for row, text in enumerate(beams.texts)])
        if settings.renormalize_logits:
            scores = scores - mx.logsumexp(scores, axis=-1, keepdims=True)
        rows = beams.go_on(scores)
        if rows != list(range(len(rows))):
            _change_rows(cache, mx.array(rows), of_texts_only=True)
    return beams.best()


class _Beams:
    """The texts that are being written, and the best of those that are whole."""

    def __init__(self, start: int, ends: Sequence[int], max_tokens: int, settings: BeamSettings) -> None:
        count = settings.num_beams
        self.texts = [[start]] * count
        self.done = False
        self._ends, self._most, self._settings = frozenset(ends), max_tokens, settings
        # All begin alike: only the first may go on, so that they become different.
        self._scores: _Floats = np.array([0.0] + [_NEVER] * (count - 1), np.float32)
        self._whole: list[list[int]] = [[start]] * count
        self._whole_scores: _Floats = np.full(count, _NEVER)
        self._is_whole = np.zeros(count, bool)
        self._improvable = True

    def best(self) -> list[int]:
        """The best text that is whole, without the token that it begins with."""
        return self._whole[0][1:]

    def go_on(self, scores: mx.array) -> list[int]:
        """Take one more token in every text; gives the row that each of them comes from.

        Args:
            scores: Logarithms of the probabilities of all tokens, [beams, vocabulary].
        """
        count, vocabulary = scores.shape
        all_scores = (scores + mx.array(self._scores)[:, None]).reshape(-1)
        # Enough that as many go on as there are, should all of the first end.
        chosen, chosen_scores = _likeliest(all_scores, max(2, 1 + len(self._ends)) * count)
        rows, tokens = chosen // vocabulary, chosen % vocabulary
        texts = [[*self.texts[row], int(token)] for row, token in zip(rows, tokens, strict=True)]
        written = len(texts[0]) - 1
        ended = np.array([written >= self._most or text[-1] in self._ends for text in texts])
        self._keep_whole(texts, chosen_scores, ended & (np.arange(len(texts)) < count), written)
        running = np.where(ended, chosen_scores + _NEVER, chosen_scores)
        best = _order(running)[:count]
        self.texts, self._scores = [texts[index] for index in best], running[best]
        self._improvable &= self._could_improve(written)
        self.done = bool(not self._improvable or (self._full() and self._stops_early()) or ended.all())
        return [int(rows[index]) for index in best]

    def _keep_whole(self, texts: list[list[int]], scores: _Floats, ended: NDArray[np.bool_], written: int) -> None:
        penalized = scores / np.float32(written**self._settings.length_penalty)
        if (self._full() and self._stops_early()) or not self._improvable:
            penalized = penalized + _NEVER
        penalized = np.where(ended, penalized, penalized + _NEVER)
        merged = np.concatenate([self._whole_scores, penalized])
        best = _order(merged)[: self._settings.num_beams]
        all_texts = [*self._whole, *texts]
        self._whole, self._whole_scores = [all_texts[index] for index in best], merged[best]
        self._is_whole = np.concatenate([self._is_whole, ended])[best]

    def _could_improve(self, written: int) -> bool:
        penalty = self._settings.length_penalty
        longest = self._settings.early_stopping == "never" and penalty > 0.0
        score = self._scores[0] / np.float32((self._most if longest else written) ** penalty)
        worst = np.where(self._is_whole, self._whole_scores.min(), _NEVER).min()
        return bool(score > worst)

    def _full(self) -> bool:
        return bool(self._is_whole.all())

    def _stops_early(self) -> bool:
        return self._settings.early_stopping is True


def _likeliest(scores: mx.array, count: int) -> tuple[NDArray[np.int64], _Floats]:
    """Indices and values of the ``count`` largest, the largest first."""
    count = min(count, scores.size)
    found = mx.argpartition(-scores, count - 1)[:count]
    values = np.array(scores[found])
    order = _order(values)
    return np.array(found).astype(np.int64)[order], values[order]


def _order(scores: _Floats) -> NDArray[np.int64]:
    return np.argsort(-scores, kind="stable")


def _change_rows(cache: Sequence[Any], rows: mx.array, of_texts_only: bool = False) -> None:
    """Let each row of a batch be what row ``rows`` of it was; with ``of_texts_only`` not in what the encoder gave."""
    for entry in cache:
        if hasattr(entry, "caches"):  # first what the encoder gave, then the layer's own
            _change_rows(entry.caches[1:] if of_texts_only else entry.caches, rows)
        elif isinstance(held := getattr(entry, "cache", None), list):
            entry.cache = [array if array is None else mx.take(array, rows, axis=0) for array in held]
        elif entry.keys is not None:
            entry.keys, entry.values = (mx.take(array, rows, axis=0) for array in (entry.keys, entry.values))
