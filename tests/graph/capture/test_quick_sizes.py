"""Whether an expression is a number, asked once: the answers are sympy's."""

from __future__ import annotations

import sympy

from mlxport.graph.capture.quick_sizes import quick_sizes


def test_the_answers_are_those_of_sympy():
    x = sympy.Symbol("x", integer=True)
    asked = [x + 1, sympy.Integer(3) ** sympy.Rational(1, 2), sympy.floor(x / 2), sympy.cos(1), sympy.Max(x, 2), x - x]
    wanted = [item.is_number for item in asked]
    own = sympy.Expr.is_number
    with quick_sizes(), quick_sizes():
        assert [item.is_number for item in asked] == [item.is_number for item in asked] == wanted
        assert sympy.Expr.is_number is not own
    assert sympy.Expr.is_number is own and True in wanted and False in wanted
