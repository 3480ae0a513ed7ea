"""An example with larger sizes where it has 1: torch.export takes a size of 1 as fixed, whatever the module allows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mlxport.graph.capture.trial_runs import TrialRuns
from mlxport.printable import words

__all__ = ["Axis", "LargerExample", "larger_example"]

Axis = tuple[int, int]  # number of the leaf of (args, kwargs), and the axis
_SECONDS = 10.0  # for all trials together
_NUMBERS = (2, 3, 5, 7, 11, 13)


@dataclass(frozen=True)
class LargerExample:
    """The inputs that are captured.

    Attributes:
        args: Positional inputs.
        kwargs: Keyword inputs.
        number: The size that stands in the place of 1.
        axes: Where it does.
        kept: Where a size of 1 was left, and why.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    number: int = 2
    axes: frozenset[Axis] = frozenset()
    kept: Mapping[Axis, str] = field(default_factory=dict)


def larger_example(
    runs: TrialRuns,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    wanted: Callable[[int, int], bool],
    without: Mapping[Axis, str],
) -> LargerExample:
    """The inputs with a larger size for each 1 that the module takes another for.

    Args:
        runs: Of the module.
        args: The example's positional inputs.
        kwargs: The example's keyword inputs.
        wanted: Whether the size of a leaf along an axis may be free at all.
        without: Where 1 is to stay, and why.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    ones = [axis for axis in _ones(leaves) if wanted(*axis) and axis not in without]
    sizes = {size for leaf in leaves if isinstance(leaf, torch.Tensor) for size in leaf.shape}
    number = next((number for number in _NUMBERS if number not in sizes), _NUMBERS[-1])
    chosen: frozenset[Axis] = frozenset()
    kept = dict(without)
    spent = 0.0
    for group in _groups(ones):
        trial = chosen | group
        if trial == chosen:
            continue
        if spent > _SECONDS:
            kept |= dict.fromkeys(group - chosen, "the example has 1 there, and the module is too slow to try another")
            continue
        spent += runs.seconds
        try:
            runs(*_resized(leaves, spec, trial, number))
        except Exception as error:  # the user's code, which may take 1 only
            kept |= dict.fromkeys(group - chosen, _refusal(error, number))
        else:
            chosen = trial
    kept = {axis: why for axis, why in kept.items() if axis not in chosen}
    larger_args, larger_kwargs = _resized(leaves, spec, chosen, number)
    return LargerExample(larger_args, larger_kwargs, number, chosen, kept)


def _ones(leaves: Sequence[Any]) -> Iterator[Axis]:
    for index, leaf in enumerate(leaves):
        for axis, size in enumerate(leaf.shape if isinstance(leaf, torch.Tensor) else ()):
            if size == 1:
                yield index, axis


def _groups(ones: Sequence[Axis]) -> list[frozenset[Axis]]:
    """What is tried together: all, then each axis of all inputs (the batch is one), then each by itself."""
    by_axis = {axis: frozenset(one for one in ones if one[1] == axis) for axis in sorted({axis for _, axis in ones})}
    groups = [frozenset(ones), *by_axis.values(), *(frozenset([one]) for one in ones)]
    return list(dict.fromkeys(groups))


def _resized(leaves: Sequence[Any], spec: Any, axes: frozenset[Axis], number: int) -> Any:
    """(args, kwargs) with what is there repeated along ``axes``."""

    def resized(index: int, leaf: Any) -> Any:
        for axis in (axis for which, axis in axes if which == index):
            leaf = leaf.repeat_interleave(number, dim=axis)
        return leaf

    return pytree.tree_unflatten(list(itertools.starmap(resized, enumerate(leaves))), spec)


def _refusal(error: BaseException, number: int) -> str:
    said = (words(error).strip().splitlines() or [""])[0][:120]
    return f"the example has 1 there, and with {number} the module raises {type(error).__name__}: {said}"
