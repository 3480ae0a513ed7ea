"""What stands in a graph for a loop whose turns are equal: its body once, between the nodes that these ops are of.

``steps`` opens the loop and gives the number of the turn, ``carried`` what the turn before left, ``handed_on`` leaves
it for the next one and is its value after the last, ``collected`` is the list of what all turns gave. Every node of the
body says in ``meta["loops"]`` in which loops it stands. None has a meaning in torch: what a pass may do with a body is
what it may do with any ops, but no value can be computed through these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import has_side_effect

from mlxport.graph.lower.traits import declare, traits_of

__all__ = [
    "becomes", "carried", "collected", "handed_on", "is_loop_op", "item", "joined", "leaves_loop", "left", "loops_of",
    "part", "place", "settle_loops", "stacked", "steps",
]  # fmt: skip


@declare(read=True, random=True)
def steps(turns: int, *starts: torch.Tensor) -> int:
    """The number of the turn, from 0 to ``turns - 1``; ``starts``: what is carried into the first."""
    raise NotImplementedError


@declare(random=True)
def carried(turn: int, index: int) -> torch.Tensor:
    """What the turn before handed on, at first ``starts[index]`` of the loop whose ``turn`` it is."""
    raise NotImplementedError


@declare(random=True)
def handed_on(value: torch.Tensor, turn: int, index: int) -> torch.Tensor:
    """``value`` is what the next turn takes as ``carried(turn, index)``; the result is that of the last turn."""
    raise NotImplementedError


has_side_effect(handed_on)


@declare(random=True)
def left(value: torch.Tensor, turn: int) -> torch.Tensor:
    """``value`` of the last turn."""
    raise NotImplementedError


@declare(random=True)
def collected(value: torch.Tensor, turn: int) -> torch.Tensor:
    """The list of ``value`` of all turns: as a fake value it is one tensor, turns first."""
    raise NotImplementedError


def place(turn: int, first: int, step: int) -> int:
    """``first + step * turn``."""
    raise NotImplementedError


@declare(random=True)
def part(values: torch.Tensor, first: int, last: int, step: int) -> torch.Tensor:
    """A list without ``first`` of its elements at the front and ``last`` at the end, backwards if ``step`` is -1."""
    raise NotImplementedError


@declare(random=True)
def item(values: torch.Tensor, index: int) -> torch.Tensor:
    """One element of a list."""
    raise NotImplementedError


@declare(random=True)
def stacked(values: Sequence[torch.Tensor], lists: Sequence[bool], axis: int) -> torch.Tensor:
    """``torch.stack`` of tensors, and of the elements of those ``values`` that are ``lists``."""
    raise NotImplementedError


@declare(random=True)
def joined(values: Sequence[torch.Tensor], lists: Sequence[bool], axis: int) -> torch.Tensor:
    """``torch.cat`` of tensors, and of the elements of those ``values`` that are ``lists``."""
    raise NotImplementedError


_WITHIN = (steps, carried, handed_on, left, collected)


def is_loop_op(node: Node) -> bool:
    """Whether the node is one of these."""
    return getattr(node.target, "__module__", "") == __name__


def leaves_loop(node: Node) -> bool:
    """Whether it stands for a loop itself: it is written with the loop, not as an expression."""
    return node.target in _WITHIN


def loops_of(node: Any) -> tuple[tuple[str, str], ...]:
    """The loops that a node stands in, outermost first: name, and the key of the innermost call of a module around."""
    return node.meta.get("loops", ()) if isinstance(node, Node) else ()


def becomes(node: Node) -> Node:
    """What a carried value is after a turn."""
    turn, index = node.args
    handed = next(user for user in turn.users if user.target is handed_on and user.args[2] == index)  # type: ignore[union-attr]
    value = handed.args[0]
    assert isinstance(value, Node)
    return becomes(value) if value.target is carried and value is not node else value


def settle_loops(graph: Graph) -> None:
    """Say of nodes that passes have made in which loops they stand.

    What follows from the number of a turn, or from what is carried, stands in the loop; so does what only arranges
    something for it.
    """
    if not any(node.target is steps for node in graph.nodes):
        return
    new = [node for node in graph.nodes if node.op == "call_function" and "loops" not in node.meta]
    for node in new:
        node.meta["loops"] = max((_given_in(item) for item in node.all_input_nodes), key=len, default=())
    for node in reversed(new):
        users = [loops_of(user) for user in node.users]
        common = users[0] if users else ()
        while any(found[: len(common)] != common for found in users):
            common = common[:-1]
        known = traits_of(node)
        if len(common) > len(node.meta["loops"]) and (known.view is not None or known.creation):
            node.meta["loops"] = common


def _given_in(node: Node) -> tuple[tuple[str, str], ...]:
    """The loops in which the value of a node is known for one turn."""
    found = loops_of(node)
    return found[:-1] if node.target in (handed_on, left, collected) else found
