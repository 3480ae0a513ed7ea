"""Which sizes the inputs may have: as ``check_inputs`` takes it, and in words, each free size with its range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.guards import SizeRule, size_rules
from mlxport.graph.lower import symbolic_sizes

__all__ = ["InputSizes", "input_sizes", "sizes_told"]

Size = int | str | tuple[str, int, int]


@dataclass
class InputSizes:
    """The sizes of the inputs.

    Attributes:
        shapes: What each size of an input has to be: a number, a name, or (name, factor, offset).
        letters: The name of each expression.
        rules: What the named sizes may be.
    """

    shapes: dict[str, tuple[Size, ...]] = field(default_factory=dict)
    letters: dict[Any, str] = field(default_factory=dict)
    rules: dict[sympy.Symbol, SizeRule] = field(default_factory=dict)

    @property
    def symbols(self) -> list[sympy.Symbol]:
        """The symbols among the sizes."""
        return [expr for expr in self.letters if expr.is_Symbol]

    def limits(self) -> dict[str, tuple[int | None, ...]]:
        """What ``check_inputs`` takes of the rules: those that say something."""
        return {self.letters[symbol]: rule.as_tuple() for symbol, rule in self.rules.items() if not rule.trivial}


def input_sizes(captured: Captured, names: Mapping[Node, str]) -> InputSizes:
    """The sizes of the inputs that ``names`` has, tensors only."""
    found = InputSizes()
    for node, name in names.items():
        value = node.meta["val"]
        if isinstance(value, torch.Tensor) and "argument" not in node.meta:
            found.shapes[name] = tuple(
                size if isinstance(size, int) else _wanted(captured, found.letters, size.node.expr)
                for size in value.shape
            )
    found.rules = size_rules(captured, found.symbols)
    return found


def _wanted(captured: Captured, letters: dict[Any, str], expr: Any) -> Size:
    """The name of a size, with a factor and an offset where it follows from one symbol."""
    symbols = list(expr.free_symbols)
    if len(symbols) == 1 and expr != symbols[0]:
        factor = expr.diff(symbols[0])
        offset = expr - factor * symbols[0]
        if factor.is_Integer and factor > 0 and offset.is_Integer:
            return _letter(captured, letters, symbols[0]), int(factor), int(offset)
    return _letter(captured, letters, expr)


def _letter(captured: Captured, letters: dict[Any, str], expr: Any) -> str:
    if expr not in letters:
        base = symbolic_sizes.size_name(captured, expr)
        name, number = base, 1
        while name in letters.values():
            number += 1
            name = f"{base}{number}"
        letters[expr] = name
    return letters[expr]


def sizes_told(captured: Captured, names: Mapping[Node, str]) -> list[str]:
    """A sentence for each input: its sizes, which of them are free and in which range, and what fixes the others."""
    sizes = input_sizes(captured, names)
    places = {node: index for index, node in enumerate(captured.inputs) if node is not None}
    ranges = {sizes.letters[symbol]: _range(rule) for symbol, rule in sizes.rules.items()}
    told = []
    for node, name in names.items():
        shape = sizes.shapes.get(name)
        if shape is None:
            continue
        parts: dict[str, list[str]] = {}
        for what, key in _parts(shape, ranges, captured.fixed, places.get(node, -1)):
            if what not in parts.setdefault(key, []):
                parts[key].append(what)
        words = [f"{_listed(which)} {'are' if len(which) > 1 else 'is'} {what}" for what, which in parts.items()]
        told.append(f"sizes of {name}: ({', '.join(map(_text, shape))})" + "".join(f"; {part}" for part in words))
    return told


def _parts(
    shape: tuple[Size, ...], ranges: Mapping[str, str], fixed: Mapping[tuple[int, int], str], leaf: int
) -> Iterator[tuple[str, str]]:
    """What stands in each place, and what is said of it."""
    for axis, size in enumerate(shape):
        if isinstance(size, int):
            why = fixed.get((leaf, axis), "")
            yield str(size), f"fixed ({why})" if why else "fixed"
        else:
            letter = size if isinstance(size, str) else size[0]
            yield letter, f"free{ranges.get(letter, '')}"


def _range(rule: SizeRule) -> str:
    """``, from 2 to 512, 0 modulo 8``; nothing for a size that may be any."""
    words = ""
    if rule.low > 1 or rule.high is not None:
        words = f", from {rule.low}" + ("" if rule.high is None else f" to {rule.high}")
    if rule.step > 1:
        words += f", {rule.remainder} modulo {rule.step}" if rule.remainder else f", a multiple of {rule.step}"
    return words


def _text(size: Size) -> str:
    if not isinstance(size, tuple):
        return str(size)
    letter, factor, offset = size
    product = f"{letter}*{factor}" if factor != 1 else letter
    return f"{product} {'+' if offset > 0 else '-'} {abs(offset)}" if offset else product


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
