"""Whether bits by module are better than one setting for all, beyond the error of measuring it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlxport.allocate.damage import Array
from mlxport.types import QuantSpec

__all__ = ["Verdict", "gains"]

_SPANS = 4  # of each sequence


@dataclass(frozen=True)
class Verdict:
    """What judging whole choices found.

    Attributes:
        least: Place of the prediction whose choice diverges least.
        uniform: One setting for all modules, where bits by module are not better beyond the error of measuring.
        words: What was measured; empty where there was nothing to judge between.
    """

    least: int
    uniform: Mapping[str, QuantSpec | None] | None = None
    words: str = ""


def gains(one: Array, other: Array, kinds: Sequence[int]) -> list[tuple[float, float]]:
    """By how much ``other`` diverges less than ``one`` on each kind of text, with the standard error of that.

    Args:
        one: Divergence by token [sequences, tokens].
        other: The same of another choice, on the same tokens.
        kinds: Sequences of each kind of text, in their order.
    """
    found, start = [], 0
    for count in kinds:
        difference = (one - other)[start : start + count]
        # Tokens that follow each other err together: spans of a sequence are taken as one observation each.
        spans = np.concatenate([part.mean(axis=1) for part in np.array_split(difference, _SPANS, axis=1) if part.size])
        error = float(spans.std(ddof=1) / math.sqrt(len(spans))) if len(spans) > 1 else math.inf
        found.append((float(difference.mean()), error))
        start += count
    return found
