"""What is remembered of the inputs of matrices: second moments, mean squares, or the tokens that each expert got."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import mlx.core as mx

__all__ = ["Experts", "Moments", "Power", "Statistics", "column_ranges"]

# Most columns that are looked at together. Moments, and what is computed from them, take bytes by its square and time
# by its cube: the 14,336 columns of an 8 B model would need 5 GB, the 53,248 of a 405 B model 70 GB.
MOST_COLUMNS = 8192
_WHOLE = 128  # columns of the largest group


def column_ranges(columns: int) -> list[tuple[int, int]]:
    """Ranges of columns that are looked at together, about equally wide, cut between groups.

    Columns of different ranges are rounded as if their inputs had nothing to do with one another.
    """
    count = -(-columns // MOST_COLUMNS)
    width = -(-columns // (count * _WHOLE)) * _WHOLE
    return [(start, min(start + width, columns)) for start in range(0, columns, width)]


class Statistics(Protocol):
    """Inputs of one matrix, or of several that are given the very same array."""

    tokens: int

    def add(self, x: mx.array, original: mx.array | None) -> None:
        """Count inputs [tokens, columns], float32, and those of the original model where they are comparable."""

    def arrays(self) -> list[mx.array]:
        """What is to be evaluated before the next inputs come."""

    def power(self) -> mx.array:
        """Mean square of each column, float32."""


class Moments:
    """YᵀY, and (X - Y)ᵀY where X are the inputs that the original model has there; of each range of columns."""

    def __init__(self) -> None:
        self.tokens = 0
        self._paired = True
        self._hessians: dict[tuple[int, int], mx.array] = {}
        self._crosses: dict[tuple[int, int], mx.array] = {}

    def add(self, x: mx.array, original: mx.array | None) -> None:
        """See ``Statistics``."""
        self.tokens += x.shape[0]
        self._paired = self._paired and original is not None
        if not self._paired:
            self._crosses = {}
        for start, stop in column_ranges(x.shape[1]):
            here = x[:, start:stop]
            _sum_up(self._hessians, (start, stop), here.T @ here)
            if self._paired and original is not None:
                _sum_up(self._crosses, (start, stop), (original[:, start:stop] - here).T @ here)

    def arrays(self) -> list[mx.array]:
        """See ``Statistics``."""
        return [*self._hessians.values(), *self._crosses.values()]

    def take(self) -> Iterator[tuple[tuple[int, int], mx.array, mx.array | None]]:
        """Each range of columns with its two matrices, let go of here as they are handed out."""
        for place in list(self._hessians):
            yield place, self._hessians.pop(place), self._crosses.pop(place, None)

    def power(self) -> mx.array:
        """See ``Statistics``."""
        return mx.concatenate([mx.diag(hessian) for hessian in self._hessians.values()]) / self.tokens


def _sum_up(sums: dict[tuple[int, int], mx.array], place: tuple[int, int], product: mx.array) -> None:
    sums[place] = sums[place] + product if place in sums else product


class Power:
    """Mean squares only."""

    def __init__(self) -> None:
        self.tokens = 0
        self.total: mx.array | None = None

    def add(self, x: mx.array, original: mx.array | None) -> None:
        """See ``Statistics``."""
        self.tokens += x.shape[0]
        total = mx.square(x).sum(axis=0)
        self.total = total if self.total is None else self.total + total

    def arrays(self) -> list[mx.array]:
        """See ``Statistics``."""
        return [] if self.total is None else [self.total]

    def power(self) -> mx.array:
        """See ``Statistics``."""
        assert self.total is not None
        return self.total / self.tokens


class Experts:
    """The inputs of each expert of a stack.

    They are kept rather than their second moments: a matrix of columns × columns for each of a hundred experts would
    not fit, and most see fewer tokens than they have columns. bfloat16, as the moments do not need more.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._rows: dict[int, list[mx.array]] = {}
        self._new: list[mx.array] = []

    def add_expert(self, expert: int, x: mx.array) -> None:
        """Count inputs [tokens, columns] of one expert."""
        rows = x.astype(mx.bfloat16)
        self.tokens += x.shape[0]
        self._rows.setdefault(expert, []).append(rows)
        self._new.append(rows)

    def arrays(self) -> list[mx.array]:
        """See ``Statistics``."""
        found, self._new = self._new, []
        return found

    def inputs(self, expert: int, start: int = 0, stop: int | None = None) -> mx.array | None:
        """All inputs of one expert in some columns, float32 [tokens, columns]; None where it got no token."""
        rows = self._rows.get(expert)
        return mx.concatenate([x[:, start:stop] for x in rows]).astype(mx.float32) if rows else None

    def shared(self, start: int, stop: int) -> mx.array:
        """Second moments of all tokens in some columns, a mean per token, float32 [columns, columns]."""
        total = mx.array(0.0)
        for expert in sorted(self._rows):
            x = self.inputs(expert, start, stop)
            assert x is not None
            total = total + x.T @ x
            mx.eval(total)
        return total / max(self.tokens, 1)

    def power(self) -> mx.array:
        """See ``Statistics``."""
        total = mx.array(0.0)
        for expert in sorted(self._rows):
            x = self.inputs(expert)
            assert x is not None
            total = total + mx.square(x).sum(axis=0)
            mx.eval(total)
        return total / max(self.tokens, 1)

    def counts(self, experts: int) -> list[int]:
        """Tokens of each expert."""
        return [sum(rows.shape[0] for rows in self._rows.get(e, ())) for e in range(experts)]
