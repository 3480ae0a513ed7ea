"""``for`` loops in the body of a scope: what is carried has one name before, within and after, lists have their own.

    h = mx.zeros((B, 16))
    ys = []
    for t in range(L):
        h = self.cell(x[:, t], h)
        ys.append(h)

MLX builds the graph of all turns before it computes the first. Nothing is evaluated in between: that would not do
within ``mx.compile`` or ``mx.grad``. Some thousands of turns are a graph of some ten thousand operations, which MLX
takes in its stride.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch.fx import Node

from mlxport.graph.capture import origin
from mlxport.graph.lower import loop_ops
from mlxport.graph.write.scope_parts import ScopeParts, Step

if TYPE_CHECKING:
    from mlxport.graph.write.tree import Scope

__all__ = ["Loop", "blocks", "list_name", "loops_in", "loops_of_unit", "turn_name"]


@dataclass
class Loop:
    """One loop among the units of a scope.

    Attributes:
        turn: The node that is the number of the turn.
        start: Index of the unit that opens it.
        end: Index of its last unit.
        names: Of what is carried, by number.
        moved: What is handed on under another name, until the last is: name and expression.
    """

    turn: Node
    start: int
    end: int
    names: dict[int, str] = field(default_factory=dict)
    moved: list[tuple[str, ast.expr]] = field(default_factory=list)

    def handed(self) -> dict[int, Node]:
        """What is handed on, by number."""
        return {user.args[2]: user for user in self.turn.users if user.target is loop_ops.handed_on}  # type: ignore[misc]

    def lists(self) -> list[Node]:
        """What is collected."""
        return [user for user in self.turn.users if user.target is loop_ops.collected and user.users]

    def number_of(self, node: Node) -> int | None:
        """Which of those carried becomes ``node``."""
        found = [user.args[2] for user in node.users if user.target is loop_ops.handed_on and user.args[1] is self.turn]
        return found[0] if len(found) == 1 else None  # type: ignore[return-value]


def loops_of_unit(unit: Node | Scope) -> tuple[str, ...]:
    """Names of the loops that a unit stands in."""
    while not isinstance(unit, Node):
        unit = unit.items[0]
    return tuple(name for name, _ in loop_ops.loops_of(unit))


def loops_in(units: ScopeParts) -> list[Loop]:
    """The loops of a scope, in order."""
    found = []
    for index, unit in enumerate(units.all):
        if isinstance(unit, Node) and unit.target is loop_ops.steps:
            name = loops_of_unit(unit)[-1]
            end = index
            while end + 1 < len(units.all) and name in loops_of_unit(units.all[end + 1]):
                end += 1
            found.append(Loop(unit, index, end))
    return found


def turn_name(node: Node) -> str:
    """What the source calls the number of the turn of the innermost loop around ``node``; ``t`` if it has no name."""
    for file, line in reversed(origin.all_frames(node)):
        for loop in reversed(origin.loops_around(file, line)):
            target, over = getattr(loop, "target", None), getattr(loop, "iter", None)
            kind = getattr(over.func, "id", "") if isinstance(over, ast.Call) else ""
            if kind == "enumerate" and isinstance(target, ast.Tuple):
                target, kind = target.elts[0], "range"
            return target.id if kind in ("range", "reversed") and isinstance(target, ast.Name) else "t"
    return "t"


def list_name(listed: Node) -> str:
    """What the source calls a list of arrays that is stacked or joined: the variable that it is given as."""
    for user in listed.users:
        user = next(iter(user.users)) if user.target is loop_ops.part else user
        for file, line in reversed(origin.all_frames(user)):
            found = [
                name
                for first, last, called, call in sorted(origin.calls_in(file), key=lambda item: item[3].col_offset)
                if first <= line <= last and called in _LISTINGS and call.args and (name := _variable(call.args[0]))
            ]
            same = [node for node in user.graph.nodes if node.target is user.target and _at(node, file, line)]
            if found:
                return found[min(same.index(user), len(found) - 1)] if user in same else found[0]
    return ""


_LISTINGS = frozenset({"stack", "cat", "concat", "concatenate", "vstack", "hstack"})


def _variable(tree: ast.expr) -> str:
    """``ys`` of ``ys[::-1]`` and ``reversed(ys)``."""
    while isinstance(tree, ast.Subscript | ast.Call):
        tree = tree.value if isinstance(tree, ast.Subscript) else tree.args[0] if tree.args else ast.Constant(None)
    return tree.id if isinstance(tree, ast.Name) else ""


def _at(node: Node, file: str, line: int) -> bool:
    return (file, line) in origin.all_frames(node)


def blocks(steps: Sequence[Step], depth: int, lines: Callable[[Sequence[Step]], Iterable[str]]) -> list[str]:
    """Statements as text: ``lines`` gives that of those that stand in no deeper loop."""
    written: list[str] = []
    plain: list[Step] = []
    index = 0
    while index < len(steps):
        step = steps[index]
        if not step.loop:
            plain.append(step)
            index += 1
            continue
        written += [*lines(plain)]
        plain = []
        end = index + 1
        while end < len(steps) and steps[end].depth > depth:
            end += 1
        over = ast.unparse(ast.fix_missing_locations(copy.deepcopy(step.value)))
        inner = blocks(steps[index + 1 : end], depth + 1, lines) or ["pass"]
        written += [f"for {', '.join(step.targets)} in {over}:", *("    " + line for line in inner)]
        index = end
    return [*written, *lines(plain)]
