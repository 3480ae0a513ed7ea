"""Whether a size is a number, asked of sympy once for each expression instead of through all that it is made of.

torch asks for every size of every tensor, and sizes after many layers are long: a third of a deep convolutional
module's capture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sympy

__all__ = ["quick_sizes"]


@contextmanager
def quick_sizes() -> Iterator[None]:
    """While it lasts, the answers are kept: expressions do not change."""
    known: dict[sympy.Expr, bool] = {}

    def is_number(self: sympy.Expr) -> bool:
        found = known.get(self)
        if found is None:
            found = known[self] = all(item.is_number for item in self.args)
        return found

    before = sympy.Expr.is_number
    sympy.Expr.is_number = property(is_number)
    try:
        yield
    finally:
        sympy.Expr.is_number = before
