"""The root's ``__call__``: its parameters, and the checks of what was fixed when the module was exported."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from keyword import iskeyword
from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.dataclass_inputs import Attribute
from mlxport.graph.capture.guards import relations, size_rules
from mlxport.graph.lower import symbolic_sizes
from mlxport.graph.lower.helpers import inputs as input_helpers
from mlxport.graph.lower.registry import helper

__all__ = ["call_signature", "input_names"]


def _input_leaves(captured: Captured) -> list[tuple[str, tuple[Any, ...], Any]]:
    """For each leaf of the example inputs: the parameter, the path within its value, and the leaf (node or value)."""
    found = []
    placeholder = [_Leaf(index) for index in range(len(captured.values))]
    args, kwargs = pytree.tree_unflatten(placeholder, captured.in_spec)
    bound = captured.signature.bind(*args, **kwargs)
    for name, value in bound.arguments.items():
        kind = captured.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            for key, inner in value.items():
                found += _leaves(captured, key, (), inner)
        else:
            found += _leaves(captured, name, (), value)
    return found


@dataclass(frozen=True)
class _Leaf:
    """Stands for one leaf of the inputs."""

    index: int


def _leaves(captured: Captured, name: str, path: tuple[Any, ...], value: Any) -> list[tuple[str, tuple[Any, ...], Any]]:
    if isinstance(value, _Leaf):
        node = captured.inputs[value.index] if value.index < len(captured.inputs) else None
        return [(name, path, node if node is not None else captured.values[value.index])]
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(captured, name, (*path, key), inner)]
    if isinstance(value, list | tuple):
        return [leaf for index, inner in enumerate(value) for leaf in _leaves(captured, name, (*path, index), inner)]
    if is_dataclass(value) and not isinstance(value, type):
        parts = {item.name: getattr(value, item.name) for item in dataclass_fields(value)}
        return [
            leaf for key, inner in parts.items() for leaf in _leaves(captured, name, (*path, Attribute(key)), inner)
        ]
    return [(name, path, value)]


def input_names(captured: Captured) -> dict[Node, str]:
    """What each tensor of the inputs is called in the root's ``__call__``."""
    names: dict[Node, str] = {}
    for name, path, leaf in _input_leaves(captured):
        if isinstance(leaf, Node):
            last = [str(part) for part in path if isinstance(part, str)]
            names[leaf] = last[-1] if last else "_".join([name, *map(str, path)])
            # A part may not hide the parameter that further parts are taken from.
            if list(names.values()).count(names[leaf]) > 1 or path and names[leaf] in captured.signature.parameters:
                names[leaf] = "_".join([name, *map(str, path)])
            names[leaf] = _identifier(names[leaf])
    return names


def _identifier(key: str) -> str:
    name = re.sub(r"\W", "_", key) or "x"
    return f"x_{name}" if name[0].isdigit() or iskeyword(name) else name


def call_signature(captured: Captured, names: Mapping[Node, str]) -> tuple[str, list[str]]:
    """The root's ``__call__``: the original's parameters, checks of what was fixed, and the parts of nested inputs."""
    leaves = _input_leaves(captured)
    given: dict[str, list[tuple[tuple[Any, ...], Any]]] = {}
    for name, path, leaf in leaves:
        given.setdefault(name, []).append((path, leaf))
    order = [name for name in captured.signature.parameters if name in given]
    order += [name for name in given if name not in order]
    parts, optional = ["self"], False
    before: list[str] = []
    fixed: list[str] = []
    for name in order:
        parameter = captured.signature.parameters.get(name)
        items = given[name]
        kind = parameter.kind if parameter is not None else inspect.Parameter.KEYWORD_ONLY
        if kind is inspect.Parameter.VAR_POSITIONAL:
            parts.append(f"*{name}")
        elif len(items) == 1 and not items[0][0] and not isinstance(items[0][1], Node):
            parts.append(f"{name}={items[0][1]!r}")
            fixed.append(f"{name}=({name}, {items[0][1]!r})")
            optional = True
        else:
            parts.append(f"{name}=None" if optional else name)
        for path, leaf in items:
            access = name + "".join(f".{part}" if isinstance(part, Attribute) else f"[{part!r}]" for part in path)
            if path and isinstance(leaf, Node):
                before.append(f"{names[leaf]} = {access}")
            elif path and isinstance(leaf, bool | int | float | str | None):
                fixed.append(f"{_identifier('_'.join(map(str, (name, *path))))}=({access}, {leaf!r})")
    checks = _shape_check(captured, names)
    if fixed:
        checks.append(f"check_fixed({', '.join(fixed)})")
        helper(input_helpers.check_fixed)
    return ", ".join(parts), [*before, *checks]


def _shape_check(captured: Captured, names: Mapping[Node, str]) -> list[str]:
    wanted: dict[str, tuple[Any, ...]] = {}
    letters: dict[Any, str] = {}
    for node, name in names.items():
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            continue
        wanted[name] = tuple(
            size if isinstance(size, int) else _wanted(captured, letters, size.node.expr) for size in value.shape
        )
    if not wanted:
        return []
    helper(input_helpers.check_inputs)
    text = "{" + ", ".join(f"{name!r}: {shape!r}" for name, shape in wanted.items()) + "}"
    symbols = [expr for expr in letters if expr.is_Symbol]
    rules = size_rules(captured, symbols)
    limits = {letters[symbol]: rule.as_tuple() for symbol, rule in rules.items() if not rule.trivial}
    extra = f", {limits!r}" if limits else ""
    lines = [f"check_inputs({text}{extra}, {', '.join(f'{name}={name}' for name in wanted)})"]
    places: dict[Any, str] = {}
    for node, name in names.items():
        value = node.meta["val"]
        for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if isinstance(size, torch.SymInt):
                places.setdefault(size.node.expr, f"{name}.shape[{axis}]")
    for condition in relations(captured, symbols, rules, places):
        lines += [f"if not {condition}:", f'    raise ValueError("the sizes of the inputs must satisfy {condition}")']
    return lines


def _wanted(captured: Captured, letters: dict[Any, str], expr: Any) -> str | tuple[str, int, int]:
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
