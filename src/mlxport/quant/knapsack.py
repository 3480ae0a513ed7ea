"""Which setting each module gets, so that the damage is least within a number of bytes: pure arithmetic, no I/O.

This is the multiple-choice knapsack problem. Its Lagrangian relaxation is solved on the convex hulls of the options
(Sinha and Zoltners, "The multiple-choice knapsack problem", 1979), which gives a bound on what any choice can reach
and a first choice. Between the two lie few options, those whose reduced cost is less than the gap; dynamic
programming over them, with dominated states left out, finds the best choice (Dyer, Kayal and Walker, 1984).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mlxport.errors import QuantizationError
from mlxport.types import QuantSpec

__all__ = ["Allocation", "SizedSetting", "allocate", "least_bytes"]

# Partial choices that are held at once. Beyond, neighbours are thinned out, and the result may miss the best one.
_MOST_STATES = 4096
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class SizedSetting:
    """One setting of one module.

    Attributes:
        nbytes: What it stores.
        damage: What it costs, in any unit that adds up over modules; not negative.
        spec: The setting, None to keep the module as it is.
    """

    nbytes: int
    damage: float
    spec: QuantSpec | None


@dataclass(frozen=True)
class Allocation:
    """A choice within the budget.

    Attributes:
        chosen: Module path to its option, in the order of the modules.
        bound: No choice within the budget has less damage than this.
        exact: Whether no choice within the budget has less damage than this one.
    """

    chosen: Mapping[str, SizedSetting]
    bound: float
    exact: bool

    @property
    def nbytes(self) -> int:
        """Bytes of all modules."""
        return sum(option.nbytes for option in self.chosen.values())

    @property
    def damage(self) -> float:
        """Damage of all modules."""
        return sum(option.damage for option in self.chosen.values())


def least_bytes(options: Mapping[str, Sequence[SizedSetting]]) -> int:
    """The fewest bytes that any choice takes."""
    return sum(min(option.nbytes for option in given) for given in options.values())


def allocate(options: Mapping[str, Sequence[SizedSetting]], budget: int, most_states: int = _MOST_STATES) -> Allocation:
    """Choose one option of each module such that the bytes are at most ``budget`` and the damage is least.

    Equal input gives an equal choice. Of options that are equal in bytes and damage the first counts.

    Args:
        options: Module path to its options, at least one each.
        budget: Most bytes.
        most_states: Partial choices that are held at once; with fewer than are needed the result may not be exact.

    Raises:
        QuantizationError: Not even the smallest options fit; says what they take.
    """
    least = least_bytes(options)
    if least > budget:
        raise QuantizationError(f"the smallest settings take {least:,} bytes, the budget is {budget:,}")
    useful = {path: _undominated(given) for path, given in options.items()}
    price, chosen = _relaxed(useful, budget)
    floor = {path: min(o.damage + price * o.nbytes for o in given) for path, given in useful.items()}
    bound = max(0.0, sum(floor.values()) - price * budget)
    gap = sum(option.damage for option in chosen.values()) - bound
    if gap <= _ROUNDING * bound:
        return Allocation(chosen, bound, True)
    gap += _ROUNDING * (bound + gap)  # sums differ in their last digits
    viable = {
        path: [o for o in given if o.damage + price * o.nbytes - floor[path] <= gap] for path, given in useful.items()
    }
    better, exact = _searched(viable, floor, price, gap, budget, most_states)
    if better is not None and _damage(better) < _damage(chosen):
        chosen = better
    return Allocation(chosen, bound, exact)


def _damage(chosen: Mapping[str, SizedSetting]) -> float:
    return sum(option.damage for option in chosen.values())


def _undominated(options: Sequence[SizedSetting]) -> list[SizedSetting]:
    """Options by bytes, without those that take no less and damage no less than another."""
    kept: list[SizedSetting] = []
    for option in sorted(options, key=lambda o: (o.nbytes, o.damage)):
        if not kept or option.damage < kept[-1].damage:
            kept.append(option)
    return kept


def _hull(options: Sequence[SizedSetting]) -> list[SizedSetting]:
    """The lower convex hull of options that are sorted by bytes."""
    hull: list[SizedSetting] = []
    for option in options:
        while len(hull) > 1 and _saved(hull[-2], hull[-1]) <= _saved(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _saved(smaller: SizedSetting, larger: SizedSetting) -> float:
    """Damage that each more byte saves."""
    return (smaller.damage - larger.damage) / (larger.nbytes - smaller.nbytes)


def _relaxed(options: Mapping[str, Sequence[SizedSetting]], budget: int) -> tuple[float, dict[str, SizedSetting]]:
    """The price of a byte at which the relaxed problem fills the budget, and a choice within it."""
    chosen = {path: given[0] for path, given in options.items()}
    spare = budget - sum(option.nbytes for option in chosen.values())
    steps = [
        (_saved(small, large), path, small, large)
        for path, given in options.items()
        for small, large in pairwise(_hull(given))
    ]
    price = 0.0
    for saved, path, small, large in sorted(steps, key=lambda step: -step[0]):
        more = large.nbytes - small.nbytes
        if chosen[path] is small and more <= spare:
            chosen[path] = large
            spare -= more
        elif not price:  # the first step that does not fit whole
            price = saved
    return price, chosen


def _searched(
    options: Mapping[str, Sequence[SizedSetting]],
    floor: Mapping[str, float],
    price: float,
    gap: float,
    budget: int,
    most_states: int,
) -> tuple[dict[str, SizedSetting] | None, bool]:
    """The best choice of ``options`` within the budget by dynamic programming, and whether no state was left out.

    A state is the bytes and the damage of a choice for the modules so far. It is dropped where another has no more of
    either, where the rest cannot fit, and where its reduced costs exceed the gap.
    """
    rest = least_bytes(options)
    sizes, damages, costs = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    history: list[tuple[Any, Any]] = []
    exact = True
    for path, given in options.items():
        rest -= min(option.nbytes for option in given)
        more = np.array([option.nbytes for option in given], np.int64)
        worse = np.array([option.damage for option in given])
        size = (sizes[:, None] + more).ravel()
        damage = (damages[:, None] + worse).ravel()
        cost = (costs[:, None] + (worse + price * more - floor[path])).ravel()
        order = np.flatnonzero((size + rest <= budget) & (cost <= gap))
        order = order[np.lexsort((damage[order], size[order]))]
        falling = np.minimum.accumulate(damage[order])
        order = order[np.r_[True, falling[1:] < falling[:-1]]] if len(order) else order
        if not len(order):
            return None, exact
        if len(order) > most_states:
            order, exact = order[np.linspace(0, len(order) - 1, most_states).astype(np.int64)], False
        history.append((order // len(given), order % len(given)))
        sizes, damages, costs = size[order], damage[order], cost[order]
    state = int(np.argmin(damages))
    found: dict[str, SizedSetting] = {}
    for (path, given), (parents, picks) in zip(reversed(list(options.items())), reversed(history), strict=True):
        found[path] = given[int(picks[state])]
        state = int(parents[state])
    return {path: found[path] for path in options}, exact
