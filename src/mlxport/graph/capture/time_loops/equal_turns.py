"""Find the turns of a loop in a graph that torch.export has unrolled: stretches of ops that repeat, by structure.

A turn is known by what its ops are, by the line of the source and the module that called them, and by their sizes.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import Graph, Node

from mlxport.graph.capture import origin
from mlxport.graph.lower.loop_ops import leaves_loop, loops_of

__all__ = ["EqualTurns", "element_name", "in_order", "innermost_loop", "loop_around", "repeats", "runs"]

_LEAST = 3  # turns that are rolled
_GAP = 24  # ops of a first turn that later ones do not have
_TAKERS = ("aten.select.int", "aten.slice.Tensor", "item", "getitem")


@dataclass(frozen=True)
class EqualTurns:
    """Equal turns, one after the other.

    Attributes:
        turns: Of each turn its nodes; None in the last one for what it does not have, as nothing needs it.
    """

    turns: tuple[tuple[Node | None, ...], ...]

    def later(self) -> EqualTurns:
        """The same without the first turn."""
        return EqualTurns(self.turns[1:])


def _form(node: Node) -> tuple[Any, ...]:
    """What makes two nodes equal in two turns, but for their arguments."""
    if leaves_loop(node) or node.op != "call_function":
        return (node.name, "once")
    stack = node.meta.get("nn_module_stack") or {}
    path = tuple(entry[0].partition("@")[0] for entry in stack.values())
    name = (
        str(node.target)
        if isinstance(node.target, torch._ops.OpOverload)
        else str(getattr(node.target, "__name__", node.target))
    )
    return name, path, node.meta.get("stack_trace"), _sizes(node.meta.get("val")), loops_of(node)


def _sizes(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{[*map(str, value.shape)]}"
    return ",".join(map(_sizes, value)) if isinstance(value, tuple | list) else type(value).__name__


def repeats(graph: Graph) -> bool:
    """Whether some line of a loop in the source calls an op more than once, for one module."""
    counts: dict[Any, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.meta.get("stack_trace"):
            counts.setdefault(_form(node)[:3], []).append(node)
    return any(len(found) > 1 and loop_around(found[:1]) for found in counts.values())


def in_order(graph: Graph) -> list[Node]:
    """The op nodes of a graph, each that takes a part or puts parts together right before its first use."""
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    position = {node: index for index, node in enumerate(graph.nodes)}
    takers: dict[Node, list[Node]] = {}
    placed: list[Node] = []
    last: list[Node] = []
    sunk = {node for node in nodes if node.users and ("merged" in node.meta or _is_one_of_many(node))}
    for node in nodes:
        if node in sunk:
            first = min(node.users, key=lambda user: position[user])
            if first.op == "call_function":
                takers.setdefault(first, []).append(node)
            else:
                last.append(node)
            continue
        placed.append(node)
    result: list[Node] = []

    def put(node: Node) -> None:
        for taker in takers.get(node, ()):
            put(taker)
        result.append(node)

    for node in [*placed, *last]:
        put(node)
    return result


def _is_one_of_many(node: Node) -> bool:
    """Whether it takes a part of what others take parts of too, as turns do of what they go over."""
    if not _takes_part(node) or node.target is operator.getitem:
        return False
    source = node.args[0]
    return isinstance(source, Node) and sum(user.target is node.target for user in source.users) > 1


def _takes_part(node: Node) -> bool:
    name = str(node.target) if isinstance(node.target, torch._ops.OpOverload) else getattr(node.target, "__name__", "")
    return name in _TAKERS or "merged" in node.meta


def runs(nodes: list[Node], declined: set[Node]) -> EqualTurns | None:
    """The longest stretch of equal turns; ``nodes``, in their order, are put in another where that makes it longer.

    Args:
        nodes: Op nodes.
        declined: First nodes of stretches that are not to be given.
    """
    forms: dict[Any, int] = {}
    codes = np.array([forms.setdefault(_form(node), len(forms)) for node in nodes], dtype=np.int64)
    best: tuple[int, int, int] | None = None
    for period in _periods(codes):
        same = codes[period:] == codes[:-period]
        for start, length in _stretches(same, period):
            if nodes[start] in declined or all(map(_takes_part, nodes[start : start + period])):
                continue
            if best is None or length > best[0]:
                best = (length, start, period)
    if best is None:
        return None
    length, start, period = best
    return _with_ends(nodes, codes.tolist(), start, period, (length + period) // period)


def _periods(codes: np.ndarray) -> list[int]:
    """Distances between one occurrence of a form and the next that occur often enough."""
    counts: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, code in enumerate(codes.tolist()):
        if code in last:
            distance = index - last[code]
            counts[distance] = counts.get(distance, 0) + 1
        last[code] = index
    return sorted(distance for distance, count in counts.items() if count >= _LEAST - 1)


def _stretches(same: np.ndarray, period: int) -> Iterable[tuple[int, int]]:
    """Start and length of the stretches in which at least three turns are equal."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], same.astype(np.int8), [0]])))
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if end - start >= (_LEAST - 1) * period:
            yield start, end - start


def _with_ends(nodes: list[Node], codes: list[int], start: int, period: int, count: int) -> EqualTurns:
    """The turns, with what belongs to the first and last of them though other ops stand between."""
    start, count = _earlier(nodes, codes, start, period, count)
    offset = _first_of_turn(nodes[start : start + period])
    if offset:
        count = (period * count + _partial(codes, start, period, count) - offset) // period
        start += offset
    turns: list[tuple[Node | None, ...]] = [
        tuple(nodes[start + turn * period : start + (turn + 1) * period]) for turn in range(count)
    ]
    template = codes[start : start + period]
    last: list[Node | None] = [None] * period
    slot = 0
    for index in range(start + count * period, len(nodes)):
        found = next((at for at in range(slot, period) if template[at] == codes[index]), None)
        if found is None:
            break
        last[found], slot = nodes[index], found + 1
    if any(node is not None for node in last):
        turns.append(tuple(last))
    return EqualTurns(tuple(turns))


def _partial(codes: list[int], start: int, period: int, count: int) -> int:
    """How many ops of a further turn follow."""
    end = start + period * count
    found = 0
    while end + found < len(codes) and found < period and codes[end + found] == codes[start + found]:
        found += 1
    return found


def _earlier(nodes: list[Node], codes: list[int], start: int, period: int, count: int) -> tuple[int, int]:
    """The start of the first turn, where that has ops of its own between those of all turns: they go before it."""
    length = period * count + _partial(codes, start, period, count)
    gap = 0
    while start > gap and gap <= _GAP:
        index = start - 1 - gap
        if codes[index] == codes[start - 1 + period] and not _needs(nodes[start - gap : start], nodes[index]):
            node, code = nodes.pop(index), codes.pop(index)
            nodes.insert(start - 1, node)
            codes.insert(start - 1, code)
            start, length = start - 1, length + 1
        else:
            gap += 1
    return start, length // period


def _needs(nodes: Sequence[Node], source: Node) -> bool:
    known = {source}
    for node in nodes:
        if any(item in known for item in node.all_input_nodes):
            known.add(node)
    return len(known) > 1


def _first_of_turn(turn: Sequence[Node]) -> int:
    """Where a turn starts in the source: at the first of the statements that its ops come from."""
    traces = [() if _takes_part(node) else tuple(origin.all_frames(node)) for node in turn]
    known = [trace for trace in traces if trace]
    if not known:
        return 0
    depth = 0
    while all(len(trace) > depth for trace in known) and len({trace[depth] for trace in known}) == 1:
        depth += 1
    if any(len(trace) <= depth for trace in known) or len({trace[depth][0] for trace in known}) != 1:
        return 0
    lines = [None if not trace else origin.statement_line(*trace[depth]) for trace in traces]
    least = min(line for line in lines if line is not None)
    if lines[0] == least or lines[0] is None:
        return 0
    first = next(index for index, line in enumerate(lines) if line == least)
    while first and lines[first - 1] is None:  # what it takes parts of stands before it
        first -= 1
    return first


def innermost_loop(node: Node) -> Any:
    """The innermost loop of the source around the line that calls an op; None if there is none, or it is not known."""
    for file, line in reversed(origin.all_frames(node)):
        around = origin.loops_around(file, line)
        if around:
            return around[-1]
    return None


def element_name(user: Node) -> str:
    """What the source calls the element of a list that ``user`` takes: the variable of the loop over it, or ``x_t``."""
    loop = innermost_loop(user)
    target, over = getattr(loop, "target", None), getattr(loop, "iter", None)
    kind = getattr(over.func, "id", "") if isinstance(over, ast.Call) else ""
    if kind == "enumerate" and isinstance(target, ast.Tuple) and len(target.elts) == 2:
        target, kind = target.elts[1], ""
    return target.id if isinstance(target, ast.Name) and kind != "range" else "x_t"


def loop_around(nodes: Sequence[Node], owner: torch.nn.Module | None = None) -> bool:
    """Whether one loop of the source is around the lines that call the ops, as far as the source can be read.

    Args:
        nodes: Op nodes; what only takes a part of something may be taken before the loop.
        owner: The module in whose forward, or in what that calls, the loop must be: those around it call it once.
    """
    around: list[set[int]] = []
    for node in (node for node in nodes if not _takes_part(node)):
        places = origin.frames_within(node, owner)
        if not places:
            continue
        found = {id(item) for file, line in places for item in origin.loops_around(file, line)}
        if not found and not any(origin.readable(file) for file, _ in places[-1:]):
            return True
        around.append(found)
    return bool(around) and bool(set.intersection(*around))
