"""Tables that a program looks up: the sizes beyond which torch raises, and the inputs whose values MLX does not check.

MLX reads some number beyond the end of an array. Where the largest index follows from the inputs' sizes (positions are
counted along a sequence), the limit becomes one of the sizes that the port checks; where it is a value of an input, it
can only be said: looking would wait for the device at every call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.value_bounds import ValueBounds
from mlxport.graph.lower.traits import View, traits_of

__all__ = ["SizeLimit", "ValueLimit", "limit_sizes", "value_limits"]


@dataclass(frozen=True)
class SizeLimit:
    """What is counted along the inputs' sizes, and up to where.

    Attributes:
        counted: An expression of sizes.
        most: Its largest value for which every place is in the table.
        table: The table's name in the module; empty for one that is computed.
    """

    counted: sympy.Expr
    most: int
    table: str


@dataclass(frozen=True)
class ValueLimit:
    """An input whose values, or numbers computed of them, are places in a table.

    Attributes:
        source: The input.
        rows: Of the table.
        table: Its name in the module; empty for one that is computed.
        itself: Whether the values are the places as they are.
    """

    source: Node
    rows: int
    table: str
    itself: bool


def limit_sizes(captured: Captured) -> list[SizeLimit]:
    """Limit the sizes of the inputs by the tables that are counted along them, and give those limits."""
    bounds = ValueBounds(captured)
    found: dict[sympy.Expr, SizeLimit] = {}
    for lookup in _lookups(captured):
        known = bounds(lookup.index)
        for counted, most in ((known.high, lookup.rows - 1), (-known.low, -lookup.first)) if known else ():
            constant, expr = sympy.expand(counted).as_coeff_Add()
            if expr.free_symbols:
                limit = SizeLimit(expr, most - int(constant), lookup.table)
                found[expr] = min(found.get(expr, limit), limit, key=lambda item: item.most)
    return [limit for limit in found.values() if _applied(captured, limit)]


def _applied(captured: Captured, limit: SizeLimit) -> bool:
    """Whether the limit is now one of the program's: of one size by its range, of two by a guard."""
    symbols = sorted(limit.counted.free_symbols, key=str)
    if any(str(symbol).startswith("u") for symbol in symbols):
        return False  # a size that depends on data
    if len(symbols) == 2:
        captured.limits.append(sympy.Le(limit.counted, limit.most))
        return True
    factor = limit.counted.coeff(symbols[0])
    if len(symbols) > 2 or not factor.is_Integer or factor <= 0 or limit.counted != factor * symbols[0]:
        return False
    low, high = captured.ranges.get(str(symbols[0]), (0, 2**63 - 1))
    captured.ranges[str(symbols[0])] = (low, min(high, limit.most // int(factor)))
    return True


def value_limits(captured: Captured) -> list[ValueLimit]:
    """The inputs of whole numbers whose values are, or give, places in tables that nothing bounds."""
    bounds = ValueBounds(captured)
    found = []
    for lookup in _lookups(captured):
        if bounds(lookup.index) is None:
            source, nodes = _unmoved(lookup.index), _sources(captured, lookup.index)
            found += [ValueLimit(node, lookup.rows, lookup.table, node is source) for node in nodes]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class _Lookup:
    """A table of a fixed number of rows, its name, what it is looked up with, and the first place that it has."""

    table: str
    rows: int
    index: Node
    first: int


def _lookups(captured: Captured) -> Iterator[_Lookup]:
    for node in captured.graph.nodes:
        for table, axis, index in _indexed(node):
            value = index.meta.get("val") if isinstance(index, Node) else None
            if not isinstance(value, torch.Tensor) or value.dtype is torch.bool or not table.meta["val"].ndim:
                continue
            rows = table.meta["val"].shape[axis]
            if isinstance(rows, int):
                from_the_end = traits_of(node).name == "index"  # x[-1] is the last one
                yield _Lookup(captured.weights.get(_unmoved(table), ""), rows, index, -rows if from_the_end else 0)


def _indexed(node: Node) -> Iterator[tuple[Node, int, Any]]:
    """What a node looks up: the table, its axis, and the places."""
    args = node.args
    match traits_of(node).name:
        case "embedding" | "embedding_bag" | "_embedding_bag_forward_only":
            yield args[0], 0, args[1]  # type: ignore[misc]
        case "index_select" | "gather":
            yield args[0], args[1], args[2]  # type: ignore[misc]
        case "index":
            for axis, index in enumerate(args[1]):  # type: ignore[arg-type]
                if index is not None:
                    yield args[0], axis, index  # type: ignore[misc]


def _unmoved(node: Node) -> Node:
    """The value that ``node`` is a view or a copy in another dtype of."""
    while (
        traits_of(node).cast
        or traits_of(node).view not in (None, View.REINTERPRETED)
        or traits_of(node).name == "clone"
    ):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _sources(captured: Captured, node: Node) -> list[Node]:
    """The inputs of whole numbers that a value is computed from, by whole numbers alone."""
    inputs = {item for item in captured.inputs if item is not None}
    found: dict[Node, None] = {}
    seen: set[Node] = set()
    waiting = [node]
    while waiting:
        item = waiting.pop()
        value = item.meta.get("val")
        if (
            item in seen
            or not isinstance(value, torch.Tensor)
            or value.dtype.is_floating_point
            or value.dtype.is_complex
        ):
            continue
        seen.add(item)
        if item in inputs and value.dtype is not torch.bool:
            found[item] = None
        waiting += item.all_input_nodes
    return list(found)
