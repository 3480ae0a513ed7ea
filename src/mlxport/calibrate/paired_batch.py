"""The batch that a model is run on, taken apart into pieces at each block and put together again.

Which axis of an array is the batch's is told by its size: the number of sequences is chosen to be no size of the model.
The axis of an output is the one in which pieces of different sizes differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxport.model.hooks import map_arrays

__all__ = ["PairedBatch", "arrays_in"]

_TOKENS = 2048  # of a piece


def arrays_in(tree: Any) -> list[mx.array]:
    """All arrays of nested tuples, lists and dicts."""
    found: list[mx.array] = []
    map_arrays(tree, found.append)
    return found


@dataclass(frozen=True)
class PairedBatch:
    """Sequences, each of them twice: first all of the original, then all of what is quantized so far.

    Attributes:
        sequences: How many there are of each; at least three, so that pieces are of two sizes.
        length: Tokens of a sequence.
        paired: Whether there is a second half; without it, only the original is run.
    """

    sequences: int
    length: int
    paired: bool = True

    @property
    def total(self) -> int:
        """Sequences of the whole batch."""
        return self.sequences * (2 if self.paired else 1)

    def pieces(self) -> list[tuple[int, int]]:
        """Ranges of sequences of one half; the first is longer than the others by one."""
        size = min(max(1, _TOKENS // self.length), max(1, (self.sequences - 1) // 2))
        starts = [0, *range(size + 1, self.sequences, size)]
        return list(zip(starts, [*starts[1:], self.sequences], strict=True))

    def axis(self, array: mx.array) -> tuple[int, int] | None:
        """The axis of the batch and how many of its entries a sequence has; None where the array has none."""
        for entries in (1, self.length):
            if self.total * entries in array.shape:
                return array.shape.index(self.total * entries), entries
        return None

    def splits(self, tree: Any) -> bool:
        """Whether anything in ``tree`` has an axis of the batch."""
        return any(self.axis(array) is not None for array in arrays_in(tree))

    def cut(self, tree: Any, start: int, stop: int) -> Any:
        """Sequences [start, stop) of the whole batch."""

        def part(array: mx.array) -> mx.array:
            found = self.axis(array)
            if found is None:
                return array
            axis, entries = found
            index = [slice(None)] * array.ndim
            index[axis] = slice(start * entries, stop * entries)
            return array[tuple(index)]

        return map_arrays(tree, part)

    def join(self, parts: list[Any]) -> Any:
        """Outputs of all pieces, of one half after the other, as the output of the whole batch."""
        first = parts[0]
        if isinstance(first, mx.array):
            other = next((p.shape for p in parts if p.shape != first.shape), None)
            if other is None:
                return first  # the same for all sequences
            axis = next(i for i, (a, b) in enumerate(zip(first.shape, other, strict=True)) if a != b)
            joined = mx.concatenate(parts, axis=axis)
            mx.eval(joined)
            return joined
        if isinstance(first, dict):
            return {key: self.join([part[key] for part in parts]) for key in first}
        if isinstance(first, (tuple, list)):
            columns = [self.join(list(column)) for column in zip(*parts, strict=True)]
            return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
        return first


def make_batch(sequences: int, length: int, sizes: set[int], paired: bool = True) -> PairedBatch:
    """A batch of at most so many sequences whose number is no size of the model."""
    taken = sizes | {length}
    factor = 2 if paired else 1
    for count in range(sequences, 2, -1):
        if factor * count not in taken and factor * count * length not in taken:
            return PairedBatch(count, length, paired)
    return PairedBatch(sequences, length, paired)
