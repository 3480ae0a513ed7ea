"""What is remembered of the inputs of matrices: second moments, mean squares, or the tokens that each expert got."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
import numpy as np

__all__ = ["Experts", "Moments", "Power", "Statistics"]


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
    """YᵀY, and (X - Y)ᵀY where X are the inputs that the original model has there."""

    def __init__(self) -> None:
        self.tokens = 0
        self.hessian: mx.array | None = None
        self.cross: mx.array | None = None
        self.paired = True

    def add(self, x: mx.array, original: mx.array | None) -> None:
        """See ``Statistics``."""
        self.tokens += x.shape[0]
        product = x.T @ x
        self.hessian = product if self.hessian is None else self.hessian + product
        self.paired = self.paired and original is not None
        if not self.paired or original is None:
            self.cross = None
            return
        product = (original - x).T @ x
        self.cross = product if self.cross is None else self.cross + product

    def arrays(self) -> list[mx.array]:
        """See ``Statistics``."""
        return [array for array in (self.hessian, self.cross) if array is not None]

    def power(self) -> mx.array:
        """See ``Statistics``."""
        assert self.hessian is not None
        return mx.diag(self.hessian) / self.tokens


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

    def inputs(self, expert: int) -> mx.array | None:
        """All inputs of one expert, float32 [tokens, columns]; None where it got no token."""
        rows = self._rows.get(expert)
        return mx.concatenate(rows).astype(mx.float32) if rows else None

    def shared(self) -> mx.array:
        """Second moments of all tokens, a mean per token, float32 [columns, columns]."""
        total = mx.array(0.0)
        for expert in sorted(self._rows):
            x = self.inputs(expert)
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


def by_expert(indices: mx.array, batch: tuple[int, ...]) -> list[tuple[int, np.ndarray]]:
    """Each expert that is used, and which entries of the flattened batch are its."""
    chosen = np.broadcast_to(np.array(indices), batch).reshape(-1)
    return [(int(expert), np.flatnonzero(chosen == expert)) for expert in np.unique(chosen)]
