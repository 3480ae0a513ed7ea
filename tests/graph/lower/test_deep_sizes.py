"""Sizes of deep stacks of layers share their parts: writing them takes time by the parts, not by the paths to them."""

from __future__ import annotations

import ast

import sympy
from torch.utils._sympy.functions import FloorDiv, Mod

from mlxport.graph.lower import symbolic_sizes
from mlxport.graph.write.bodies import _available


def deep(length: sympy.Symbol, depth: int) -> sympy.Expr:
    """What padding to a multiple nests: a size in which the one before stands more than once.

    Put together as it stands: simplified, sympy walks every path, or not, as hashes of the process have it.
    """
    size = length
    with sympy.evaluate(False):
        for step in range(depth):
            size = FloorDiv(Mod(size, step + 3) * size + 7, 2)
    return size


def test_deep_size_is_written_once_a_part() -> None:
    length = sympy.Symbol("s0", integer=True, positive=True)
    size = deep(length, 60)  # 2**60 paths lead to the length
    assert _available(size, {}, 0) == [length]
    tree = symbolic_sizes.written(size, {length: "L"})
    assert isinstance(tree, ast.BinOp)


def test_shallow_size_is_right() -> None:
    length = sympy.Symbol("s0", integer=True, positive=True)
    text = ast.unparse(ast.fix_missing_locations(symbolic_sizes.written(deep(length, 3), {length: "L"})))
    for number in (5, 8, 13):
        assert eval(text, {"L": number}) == int(deep(length, 3).subs(length, number))
