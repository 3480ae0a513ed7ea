"""Which values are written in place of their only use, instead of getting a name."""

from __future__ import annotations

import ast
import copy
import re

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.stores import store
from mlxport.graph.lower.layer_specs import layer
from mlxport.graph.lower.loop_ops import leaves_loop, steps
from mlxport.graph.write.for_loops import loops_of_unit
from mlxport.graph.write.scope_parts import ScopeParts, is_list
from mlxport.graph.write.tree import Scope

__all__ = ["in_list", "place", "sequential"]

_LONGEST = 100  # characters of an expression that is still written in place
_SHORT = 24  # characters of an op that is written in place wherever it is used


def place(captured: Captured, units: ScopeParts, named: set[Node]) -> dict[int, int]:
    """Index of each unit that is written in place to the index of the unit that uses it (their number: the result).

    Args:
        captured: The program.
        units: The units of one scope.
        named: Values that need a name, as sizes are taken from them.
    """
    placed: dict[int, int] = {}
    lengths = {index: _length(tree) for index, tree in enumerate(units.trees)}
    kept = _written(captured, units)
    for index, unit in enumerate(units.all):
        target = _target(captured, units, index, unit, named)
        if target is None or not kept.isdisjoint(units.references[index]):
            continue
        total = lengths[index] + lengths.get(target, 0)
        if total <= _LONGEST or (isinstance(unit, Node) and lengths[index] <= _SHORT):
            placed[index] = target
            if target in lengths:
                lengths[target] += lengths[index]
    return placed


def _written(captured: Captured, units: ScopeParts) -> set[str]:
    """Buffers and inputs that the scope writes: they are read before."""
    places = {unit.meta["store"] for unit in units.all if isinstance(unit, Node) and unit.target is store}
    nodes = [node for node, name in captured.weights.items() if name in places] if places else []
    return {"%" + node.name for node in [*nodes, *(place for place in places if isinstance(place, Node))]}


def _target(captured: Captured, units: ScopeParts, index: int, unit: Node | Scope, named: set[Node]) -> int | None:
    results = units.results(unit)
    if len(results) != 1 or results[0] in named:
        return None
    if isinstance(unit, Node) and (unit.meta.get("stays") or leaves_loop(unit)):
        return None  # what it reads changes after it
    uses = units.uses.get(results[0].name, [])
    if len(uses) != 1:
        return None
    target = uses[0]
    if loops_of_unit(unit) != (loops_of_unit(units.all[target]) if target < len(units) else ()):
        if target == len(units) or not _opens_after(unit, units.all[target]):
            return None  # it would be computed in every turn
    mine = units.statements[index]
    if target == len(units):
        if in_list(unit):
            return None  # a round of a loop is a statement
        return None if not isinstance(units.result, ast.Name) and mine and mine.names else target
    if in_list(unit) and _siblings(unit, units.all[target]):
        return None
    if isinstance(unit, Node) and is_list(unit):
        return target
    if _follows(captured, unit):
        return None
    if sequential(captured, unit) and sequential(captured, units.all[target]):
        return None
    if mine is not None and mine.names and mine != units.statements[target]:
        return None
    return target


def _opens_after(unit: Node | Scope, target: Node | Scope) -> bool:
    """Whether the unit is used where a loop is opened: before its first turn."""
    opens = isinstance(target, Node) and target.target is steps
    return opens and loops_of_unit(unit) == loops_of_unit(target)[:-1]


def sequential(captured: Captured, unit: Node | Scope) -> bool:
    """Whether the unit is an element of an nn.Sequential."""
    if isinstance(unit, Scope):
        path = unit.path
    else:
        stack = unit.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()), ("", ""))[0].partition("@")[0]
    return bool(path) and isinstance(captured.modules.get(path.rpartition(".")[0]), torch.nn.Sequential)


def _follows(captured: Captured, unit: Node | Scope) -> bool:
    """Whether the unit takes what another member of its Sequential gives: a round of a loop over the members."""
    if not isinstance(unit, Node) or unit.target is not layer or not sequential(captured, unit):
        return False
    source = unit.args[0]
    if not isinstance(source, Node) or source.target is not layer:
        return False
    mine, theirs = unit.meta["layer"].path, source.meta["layer"].path
    return bool(mine.rpartition(".")[0] == theirs.rpartition(".")[0] and mine.rpartition(".")[2].isdigit())


def in_list(unit: Node | Scope) -> bool:
    """Whether the unit is a call of an element of a list."""
    return isinstance(unit, Scope) and unit.path.rpartition(".")[2].isdigit()


def _siblings(unit: Node | Scope, other: Node | Scope) -> bool:
    """Whether both are calls of elements of one list: rounds of a loop, each a statement of its own."""
    if not isinstance(unit, Scope) or not isinstance(other, Scope):
        return False
    (a, i), (b, j) = (item.path.rpartition(".")[::2] for item in (unit, other))
    return a == b and i.isdigit() and j.isdigit()


def _length(tree: ast.expr) -> int:
    """Characters of the expression, all graph names counted alike, so that equal layers are written alike."""
    text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(tree)))
    return len(re.sub(r"[%$@][\w.]+", "......", text))
