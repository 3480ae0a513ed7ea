"""Stand-ins for sizes that depend on data: numbers that add up where torch.export has them add up."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import sympy
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

__all__ = ["add_size", "example_sizes"]

_FOUND: WeakKeyDictionary[Any, dict[sympy.Symbol, int]] = WeakKeyDictionary()


def example_sizes(environment: Any) -> dict[sympy.Symbol, int]:
    """The example's sizes by symbol, and shares of a known sum for those that torch.export asserts to add up to it.

    ``x.split(counts.tolist())`` has as many rows as ``x``: what is computed from the parts meets what is computed from
    the whole again.
    """
    if environment not in _FOUND:
        known = dict(environment.backed_var_to_val)
        for checks in environment.deferred_runtime_asserts.values():
            for check in checks:
                if isinstance(check.expr, sympy.Eq):
                    known.update(_shares(check.expr, known))
        _FOUND[environment] = known
    return _FOUND[environment]


def add_size(environment: Any, name: str, value: int) -> sympy.Symbol:
    """A new symbol for a size that the program did not have, with its value in the example."""
    symbol = sympy.Symbol(name, integer=True, positive=True)
    environment.backed_var_to_val[symbol] = value
    environment.var_to_range[symbol] = ValueRanges(1, int_oo)  # torch asks for it where sizes follow from each other
    _FOUND.pop(environment, None)
    return symbol


def _shares(equation: sympy.Eq, known: dict[sympy.Symbol, int]) -> dict[sympy.Symbol, int]:
    rest = (equation.lhs - equation.rhs).subs(known)
    open_ = sorted(rest.free_symbols, key=str)
    signs = {rest.coeff(symbol) for symbol in open_}
    total = rest - sum(rest.coeff(symbol) * symbol for symbol in open_)
    if len(signs) != 1 or not signs <= {1, -1} or not total.is_Integer:
        return {}
    total = -int(total) * int(signs.pop())
    share = total // len(open_)
    values = [total - share * (len(open_) - 1)] + [share] * (len(open_) - 1)
    return dict(zip(open_, values, strict=True)) if share >= 0 else {}
