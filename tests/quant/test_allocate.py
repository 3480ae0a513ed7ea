"""The least damage within a budget: against every choice where these can be counted, against the bound where not."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxport.errors import QuantizationError
from mlxport.quant import make_spec
from mlxport.quant.knapsack import SizedSetting, allocate, least_bytes

OPTION = st.builds(SizedSetting, st.integers(0, 40), st.sampled_from([0.0, 0.5, 1.0, 2.25, 3.7, 11.0]), st.none())
MODULES = st.lists(st.lists(OPTION, min_size=1, max_size=5), min_size=1, max_size=6)


@settings(deadline=None, max_examples=300)
@given(MODULES, st.integers(0, 150))
def test_no_choice_within_the_budget_is_better(modules: list[list[SizedSetting]], spare: int):
    options = {str(number): given for number, given in enumerate(modules)}
    budget = least_bytes(options) + spare
    found = allocate(options, budget)
    choices = (choice for choice in itertools.product(*modules) if sum(o.nbytes for o in choice) <= budget)
    best = min(sum(option.damage for option in choice) for choice in choices)
    assert list(found.chosen) == list(options)
    assert all(option in options[path] for path, option in found.chosen.items())
    assert found.nbytes <= budget
    assert found.exact
    assert found.damage == pytest.approx(best)
    assert found.bound <= best + 1e-9


def modules_like_those_of_a_model(count: int) -> dict[str, list[SizedSetting]]:
    draw = random.Random(count)
    options = {}
    for number in range(count):
        size, weight = draw.choice([4096 * 4096, 4096 * 1024, 14336 * 4096]), draw.lognormvariate(0, 1)
        given = [SizedSetting(2 * size, 0.0, None)]
        for bits, group in itertools.product((2, 3, 4, 5, 6, 8), (32, 64, 128)):
            damage = weight * size * 4.0**-bits * (1 + group / 200)
            given.append(SizedSetting(size * bits // 8 + 4 * size // group, damage, make_spec("affine", bits, group)))
        options[str(number)] = given
    return options


@pytest.mark.parametrize("count", [20, 300])
@pytest.mark.parametrize("bits", [2.3, 3.5, 4.2, 7.9, 15.0])
def test_large_ones_fill_the_budget_and_come_near_the_bound(count, bits):
    options = modules_like_those_of_a_model(count)
    budget = int(sum(given[0].nbytes for given in options.values()) / 16 * bits)
    found = allocate(options, budget)
    assert 0.99 * budget < found.nbytes <= budget
    assert found.exact
    assert found.bound <= found.damage * (1 + 1e-9)
    if count == 300:  # with few modules the budget cannot be divided so finely
        assert found.damage <= found.bound * 1.01
    assert allocate(options, budget) == found


def test_with_few_states_the_choice_is_still_within_the_budget():
    options = modules_like_those_of_a_model(40)
    budget = int(sum(given[0].nbytes for given in options.values()) / 16 * 3.3)
    few, many = allocate(options, budget, most_states=3), allocate(options, budget)
    assert few.nbytes <= budget and many.nbytes <= budget
    assert many.exact and not few.exact
    assert few.bound <= many.damage <= few.damage


def test_more_than_everything_keeps_everything():
    options = modules_like_those_of_a_model(5)
    found = allocate(options, 1 << 50)
    assert all(option.spec is None for option in found.chosen.values()) and found.damage == 0.0 and found.exact


def test_a_budget_below_the_least_says_the_least():
    options = {"a": [SizedSetting(10, 1.0, None)], "b": [SizedSetting(7, 1.0, None), SizedSetting(9, 0.0, None)]}
    assert allocate(options, 17).nbytes == 17
    with pytest.raises(QuantizationError, match="17 bytes"):
        allocate(options, 16)
