"""Roll equal turns into one: the body once, what a turn leaves to the next carried, what all of them give collected."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from mlxport.graph.capture.time_loops.equal_turns import EqualTurns, element_name, in_order, runs
from mlxport.graph.capture.time_loops.plain_spellings import alike, plain
from mlxport.graph.lower import loop_ops

__all__ = ["arguments", "common_stack", "roll_loops"]

_MOST = 100  # stretches that are looked at
_FURTHEST = 8  # turns back that a value is carried
_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)


class NotEqual(Exception):
    """Turns that are no turns of one loop, and why."""


@dataclass(frozen=True)
class _Moving:
    first: int
    step: int


@dataclass(frozen=True)
class _Inner:
    slot: int


@dataclass(frozen=True)
class _Carried:
    slot: int
    back: int
    starts: tuple[Node, ...]


@dataclass
class _Loop:
    """A loop as it is made.

    Attributes:
        name: Of the loop.
        run: Its turns.
        body: The nodes of one turn, which stay.
        states: What is carried, in order: the number of each.
    """

    name: str
    run: EqualTurns
    body: list[Node]
    where: dict[Node, tuple[int, int]]
    states: dict[_Carried, int] = field(default_factory=dict)
    nodes: dict[_Carried, Node] = field(default_factory=dict)
    collected: dict[int, Node] = field(default_factory=dict)
    left: dict[int, Node] = field(default_factory=dict)


def arguments(node: Node) -> list[Any]:
    """All that a node is given, out of its lists and tuples, in order."""
    found: list[Any] = []
    map_aggregate((node.args, node.kwargs), found.append)
    return found


def _structure(node: Node) -> str:
    return repr(map_aggregate((node.args, node.kwargs), lambda _: None))


def roll_loops(graph: Graph, wanted: Callable[[EqualTurns], bool]) -> list[Node]:
    """Roll all loops of ``graph`` in place; their ``steps``, in order. ``wanted``: whether to roll equal turns."""
    plain(graph)
    found: list[Node] = []
    declined: set[Node] = set()
    nodes = in_order(graph)
    while len(declined) < _MOST and (run := runs(nodes, declined)) is not None:
        declined.add(_first(run))
        made = _rolled(graph, run, nodes, f"loop_{len(found)}") if wanted(run) else None
        if made is None:
            continue
        found.append(made)
        nodes = in_order(graph)
    return found


def _first(run: EqualTurns) -> Node:
    node = run.turns[0][0]
    assert node is not None
    return node


def _rolled(graph: Graph, run: EqualTurns, nodes: Sequence[Node], name: str) -> Node | None:
    """The loop of a run, its first turn left before it where that differs; None where its turns differ."""
    for attempt in (run, run.later()):
        if len(attempt.turns) < 3:
            return None
        try:
            loop, taken = _planned(attempt, name)
        except NotEqual:
            continue
        _put_in_order(graph, nodes)
        return _written(graph, loop, taken)
    return None


# What a turn consists of.
def _planned(run: EqualTurns, name: str) -> tuple[_Loop, list[list[Any]]]:
    where = {node: (slot, turn) for turn, nodes in enumerate(run.turns) for slot, node in enumerate(nodes) if node}
    loop = _Loop(name, run, [node for node in run.turns[1] if node is not None], where)
    taken = [_taken(loop, slot) for slot in range(len(loop.body))]
    if all(not isinstance(item, _Carried | _Moving) for items in taken for item in items):
        raise NotEqual("every turn does the same")
    if any(isinstance(node.meta.get("val"), _NUMBERS) and not where.keys() >= node.users.keys() for node in where):
        raise NotEqual("a size that is used after the loop")
    return loop, taken


def _taken(loop: _Loop, slot: int) -> list[Any]:
    nodes = [node for turn in loop.run.turns if (node := turn[slot]) is not None]
    if len({_structure(node) for node in nodes}) != 1:
        raise NotEqual("arguments of another structure")
    taken = [_column(loop, slot, column) for column in zip(*map(arguments, nodes), strict=True)]
    if nodes[0].target is operator.getitem and isinstance(taken[1], _Moving):
        raise NotEqual("another of several results in each turn")
    return taken


def _column(loop: _Loop, slot: int, column: tuple[Any, ...]) -> Any:
    """One argument in all turns."""
    if any(isinstance(item, Node) for item in column):
        if not all(isinstance(item, Node) for item in column):
            raise NotEqual("a number that becomes an array")
        return _source(loop, column)
    if all(type(item) is type(column[0]) and _equal(item, column[0]) for item in column):
        return column[0]
    if all(type(item) is int for item in column):
        step = column[1] - column[0]
        if all(item == column[0] + step * turn for turn, item in enumerate(column)):
            return _Moving(column[0], step)
    raise NotEqual("a number that follows no rule")


def _equal(a: Any, b: Any) -> bool:
    return bool(a is b or a == b or (a != a and b != b))


def _source(loop: _Loop, column: tuple[Node, ...]) -> Any:
    inside = [loop.where.get(node) for node in column]
    known = [(turn, place) for turn, place in enumerate(inside) if place is not None]
    if not known:
        if len(set(column)) != 1:
            raise NotEqual("another array from outside in each turn")
        return column[0]
    ways = {(place[0], turn - place[1]) for turn, place in known}
    if len(ways) != 1:
        raise NotEqual("arrays of other turns")
    slot, back = next(iter(ways))
    if not 0 <= back <= _FURTHEST or [turn for turn, _ in known] != [*range(back, len(column))]:
        raise NotEqual("arrays of other turns")
    if back == 0:
        return _Inner(slot)
    starts = column[:back]
    made = loop.body[slot].meta.get("val")
    if any(not alike(start.meta.get("val"), made) for start in starts):
        raise NotEqual("a state of another shape at first")
    return _Carried(slot, back, starts)


# The graph with one turn.
def _written(graph: Graph, loop: _Loop, taken: list[list[Any]]) -> Node:
    users = [*dict.fromkeys(user for node in loop.where for user in node.users if user not in loop.where)]
    stack = common_stack(loop.run)
    starts: list[Node] = []
    for state in [item for items in taken for item in items if isinstance(item, _Carried)]:
        for back in range(1, state.back + 1):
            key = _Carried(state.slot, back, state.starts[state.back - back :])
            if key not in loop.states:
                loop.states[key] = len(starts)
                starts.append(key.starts[0])
    first = loop.body[0]
    around = loop_ops.loops_of(first)
    tag = (*around, (loop.name, next(reversed(stack), "")))
    meta = {"nn_module_stack": stack, "loops": tag, "stack_trace": first.meta.get("stack_trace")}

    def made(target: Any, args: tuple[Any, ...], val: Any, before: Node | None = None) -> Node:
        where = graph.inserting_before(before) if before is not None else graph.inserting_after(loop.body[-1])
        with where:
            node = graph.call_function(target, args)
        node.meta = {**meta, "val": val}
        return node

    turn = made(loop_ops.steps, (len(loop.run.turns), *starts), None, first)
    for key, index in loop.states.items():
        loop.nodes[key] = made(loop_ops.carried, (turn, index), key.starts[0].meta["val"], first)
    for slot, node in enumerate(loop.body):
        node.meta = {**node.meta, "loops": tag}

        def placed(moving: _Moving, node: Node = node) -> Node:
            return made(loop_ops.place, (turn, moving.first, moving.step), moving.first + moving.step, node)

        _connect(loop, node, taken[slot], placed)
    after = _After(graph, loop, turn, meta)
    for key, index in loop.states.items():
        new = loop.body[key.slot] if key.back == 1 else loop.nodes[_Carried(key.slot, key.back - 1, key.starts[1:])]
        after.add(loop_ops.handed_on, (new, turn, index), new.meta["val"])
    _uses_outside(loop, after, users)
    calls = {key for node in loop.where for key in node.meta.get("nn_module_stack") or {}} - set(stack)
    for nodes in reversed(loop.run.turns):
        for gone in reversed(nodes):
            if gone is not None and gone not in loop.body:
                graph.erase_node(gone)
    for node in graph.nodes:  # what the first turn has of its own belongs to the caller
        if node not in loop.where and not calls.isdisjoint(node.meta.get("nn_module_stack") or {}):
            node.meta["nn_module_stack"] = stack
    return turn


def _connect(loop: _Loop, node: Node, taken: list[Any], place: Callable[[_Moving], Node]) -> None:
    """Give a node of the body what it takes in every turn."""
    given = iter(taken)

    def argument(_: Any) -> Any:
        item = next(given)
        if isinstance(item, _Inner):
            return loop.body[item.slot]
        if isinstance(item, _Carried):
            return loop.nodes[item]
        return place(item) if isinstance(item, _Moving) else item

    node.args, node.kwargs = map_aggregate((node.args, node.kwargs), argument)  # type: ignore[misc,assignment]


def common_stack(run: EqualTurns) -> dict[str, Any]:
    """The part of the module stack that all ops of all turns have in common."""
    nodes = [node for turn in run.turns for node in turn if node is not None]
    return _common(*(node.meta.get("nn_module_stack") or {} for node in nodes))


def _common(*stacks: dict[str, Any]) -> dict[str, Any]:
    """The calls of modules that stacks have in common."""
    found = [*stacks[0]]
    for stack in stacks[1:]:
        pairs = zip(found, stack, strict=False)
        found = found[
            : next((index for index, (one, two) in enumerate(pairs) if one != two), min(len(found), len(stack)))
        ]
    return {key: stacks[0][key] for key in found}


class _After:
    """Adds nodes behind the body, in order."""

    def __init__(self, graph: Graph, loop: _Loop, turn: Node, meta: dict[str, Any]) -> None:
        self.graph, self.turn, self.meta = graph, turn, meta
        self.last = loop.body[-1]

    def add(self, target: Any, args: tuple[Any, ...], val: Any) -> Node:
        with self.graph.inserting_after(self.last):
            self.last = self.graph.call_function(target, args)
        self.last.meta = {**self.meta, "val": val}
        return self.last


def _uses_outside(loop: _Loop, after: _After, users: Sequence[Node]) -> None:
    """Let what uses values of turns from outside use the list of all, an element of it, or the last."""
    alone = {
        node for user in users for node in user.all_input_nodes
        if node in loop.where and not (_is_listing(user) and _parts(loop, user.args[0]) is not None)
    }  # fmt: skip
    count = len(loop.run.turns)
    slots: dict[int, set[int]] = {}
    for node in alone:
        slot, turn = loop.where[node]
        slots.setdefault(slot, set()).add(turn)
    for user in users:
        if _is_listing(user) and (found := _parts(loop, user.args[0])) is not None:
            _list(loop, after, user, found)
    for user in users:

        def argument(given: Any, user: Node = user) -> Any:
            if not isinstance(given, Node) or given not in loop.where:
                return given
            slot, turn = loop.where[given]
            if slots.get(slot) == {count - 1}:
                return _last(loop, after, slot)
            listed = _collected(loop, after, slot)
            with after.graph.inserting_before(user):
                one = after.graph.call_function(loop_ops.item, (listed, turn))
            one.meta = {key: user.meta[key] for key in ("stack_trace", "loops") if key in user.meta}
            stacks = listed.meta["nn_module_stack"], user.meta.get("nn_module_stack") or {}
            one.meta |= {
                "nn_module_stack": _common(*stacks),
                "val": given.meta["val"],
                "variable": element_name(user),
                "element": True,
            }
            return one

        user.args, user.kwargs = map_aggregate((user.args, user.kwargs), argument)  # type: ignore[misc,assignment]


def _last(loop: _Loop, after: _After, slot: int) -> Node:
    """The value of the last turn: what is handed on, if it is."""
    if slot not in loop.left:
        node = loop.body[slot]
        handed = [user for user in node.users if user.target is loop_ops.handed_on]
        loop.left[slot] = handed[0] if handed else after.add(loop_ops.left, (node, after.turn), node.meta["val"])
    return loop.left[slot]


def _collected(loop: _Loop, after: _After, slot: int) -> Node:
    if slot not in loop.collected:
        node = loop.body[slot]
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            value = None
        with after.graph.inserting_after(node):
            made = after.graph.call_function(loop_ops.collected, (node, after.turn))
        made.meta = {**after.meta, "val": value}
        after.last = made if after.last is node else after.last
        loop.collected[slot] = made
    return loop.collected[slot]


_LISTINGS: dict[str, Callable[..., Any]] = {"aten.stack.default": loop_ops.stacked, "aten.cat.default": loop_ops.joined}


def _is_listing(node: Node) -> bool:
    return str(node.target) in _LISTINGS or node.target in (loop_ops.stacked, loop_ops.joined)


@dataclass(frozen=True)
class _TurnsPart:
    """Values of all turns but ``first`` and ``last``, backwards if ``step`` is -1."""

    slot: int
    first: int
    last: int
    step: int


def _parts(loop: _Loop, values: Iterable[Any]) -> list[Any] | None:
    """A list of arrays in which those of turns are one part; None if there is no such part."""
    values, count = [*values], len(loop.run.turns)
    found: list[Any] = []
    index = 0
    while index < len(values):
        place = loop.where.get(values[index])
        longest: tuple[int, int] = (1, 1)
        for step in (1, -1) if place is not None else ():
            length = 1
            assert place is not None
            while index + length < len(values) and _is_at(loop, values[index + length], place, step * length):
                length += 1
            longest = max(longest, (length, step))
        length, step = longest
        if place is not None and length >= max(2, count - 2):
            ends = place[1], place[1] + step * (length - 1)
            found.append(_TurnsPart(place[0], min(ends), count - 1 - max(ends), step))
        else:
            found.append(values[index])
            length = 1
        index += length
    return found if any(isinstance(item, _TurnsPart) for item in found) else None


def _is_at(loop: _Loop, value: Any, place: tuple[int, int], turns: int) -> bool:
    """Whether a value is that of ``place`` so many turns later."""
    return loop.where.get(value) == (place[0], place[1] + turns)


def _list(loop: _Loop, after: _After, user: Node, found: list[Any]) -> None:
    """Let a ``stack`` or ``cat`` take the lists of what all turns gave."""
    known = [*user.args[1]] if user.target in _LISTINGS.values() else None  # type: ignore[misc]
    axis = user.args[2] if known is not None else (user.args[1] if len(user.args) > 1 else user.kwargs.get("dim", 0))
    flags = iter(known or [])
    values: list[Any] = []
    lists: list[bool] = []
    for item in found:
        if isinstance(item, _TurnsPart):
            listed = _collected(loop, after, item.slot)
            if (item.first, item.last, item.step) != (0, 0, 1):
                with after.graph.inserting_before(user):
                    listed = after.graph.call_function(loop_ops.part, (listed, item.first, item.last, item.step))
                listed.meta = {
                    key: user.meta[key] for key in ("nn_module_stack", "stack_trace", "loops") if key in user.meta
                }
                listed.meta["val"] = None
            values.append(listed)
            lists.append(True)
            for _ in range(len(loop.run.turns) - item.first - item.last if known is not None else 0):
                next(flags)
        else:
            values.append(item)
            lists.append(next(flags) if known is not None else False)
    target = _LISTINGS.get(str(user.target), user.target)
    user.target = target  # type: ignore[assignment]
    user.args, user.kwargs = (values, lists, axis), {}


def _put_in_order(graph: Graph, nodes: Sequence[Node]) -> None:
    """Let the nodes of ``graph`` stand in the order of ``nodes``."""
    output = next(node for node in graph.nodes if node.op == "output")
    for node in nodes:
        output.prepend(node)
