"""Rotary embedding in its many spellings -> ``mx.fast.rope``.

A rotary embedding is linear in ``x`` with factors that depend on the position alone. So wherever ``x`` meets such
factors, the values between ``x`` and a result of its shape are computed, and what they do to pairs of numbers is
measured: which ones are pairs, by which angle each is turned at each position. Spellings do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.fused_ops import rotary
from mlxport.graph.lower.traits import View, traits_of
from mlxport.graph.rewrite.fuse.fusion import Fusion
from mlxport.graph.rewrite.fuse.norms import inside, leaks
from mlxport.graph.rewrite.fuse.turns import Turn, measure
from mlxport.graph.rewrite.fuse.values import CannotEvaluate, Values
from mlxport.graph.rewrite.graph_queries import Editor, is_float, kind, ndim, permutation, same_shape, shape, where

__all__ = ["apply"]

# Numbers in other places and with other signs, beside views and casts; sums and multiples of them.
_MOVES = frozenset("neg cat stack index roll flip complex select_scatter slice_scatter".split())
_SUMS = frozenset("mul add sub addcmul div rsub".split())


def apply(captured: Captured, values: Values) -> Iterable[Fusion]:
    """Fuse every rotary embedding whose positions are known to be 0, 1, 2 … from some start."""
    measured: dict[Any, Any] = {}
    done: set[Node] = set()
    for node in list(captured.graph.nodes):
        factor = _factor(node, values)
        if factor is None or node in done:
            continue
        place = where(node)
        best = _best(node, values, measured)
        if best is None:
            continue
        x, result, found = best
        region = inside(result, x)
        done |= region
        if isinstance(found, str):
            yield Fusion("rope", place, found)
            continue
        _write(captured, x, result, found)
        yield Fusion("rope", place)
    yield from _from_inputs(captured, values)


def _from_inputs(captured: Captured, values: Values) -> Iterator[Fusion]:
    for place in dict.fromkeys(
        where(node)
        for node in captured.graph.nodes
        if kind(node) in ("cos", "polar") and node.users and is_float(node) and node not in values.static
    ):
        yield Fusion("rope", place, "the angles depend on inputs or on trained weights")


def _factor(node: Node, values: Values) -> Node | None:
    """What ``x`` is multiplied with, if it depends on positions alone."""
    if kind(node) not in ("mul", "addcmul") or node in values.static:
        return None
    for item in node.args:
        if isinstance(item, Node) and item in values.static and ndim(item) >= 1 and item.meta["val"].numel() != 1:
            return item
    return None


def _best(seed: Node, values: Values, measured: dict[Any, Any]) -> tuple[Node, Node, Turn | str] | None:
    """The widest rotation that the product ``seed`` is part of: what is turned, the result, and how it is turned."""
    best: tuple[int, Node, Node, Any] | None = None
    refused: tuple[Node, Node, str] | None = None
    for x in _sources(seed, values):
        reached = _reached(x, values)
        if seed not in reached:
            continue
        for result in reversed(reached):
            if not _alike(x, result) or not seed <= result:
                continue
            region = inside(result, x)
            if seed not in region or leaks(region, result) is not None:
                continue
            found = _measured(x, result, region, values, measured)
            if isinstance(found, str):
                refused = (x, result, found)
            elif found is not None and (best is None or len(region) > best[0]):
                best = (len(region), x, result, found)
    return best[1:] if best is not None else refused


def _alike(x: Node, result: Node) -> bool:
    return is_float(result) and ndim(x) >= 3 and same_shape(x.meta["val"], result.meta["val"])


def _sources(seed: Node, values: Values) -> list[Node]:
    """Nodes that the dynamic operand of ``seed`` is a part or a rearrangement of, nearest first."""
    found: dict[Node, None] = {}
    level = [item for item in seed.all_input_nodes if item not in values.static]
    for _ in range(10):
        after: list[Node] = []
        for node in level:
            if node in found:
                continue
            found[node] = None
            if _moves(node):
                after.extend(item for item in node.all_input_nodes if item not in values.static)
        level = after
    return [node for node in found if is_float(node) and ndim(node) >= 3]


def _moves(node: Node) -> bool:
    kind = traits_of(node)
    return kind.cast or kind.view is not None or kind.name in _MOVES


def _reached(x: Node, values: Values) -> list[Node]:
    """Nodes that depend linearly on ``x`` and on nothing else that inputs change, in the order of the graph."""
    found: dict[Node, None] = {}
    waiting = sorted(x.users)
    known = {x}
    while waiting:
        node = waiting.pop(0)
        if node in known or not (_moves(node) or kind(node) in _SUMS):
            continue
        if any(item not in known and item not in values.static for item in node.all_input_nodes):
            continue
        known.add(node)
        found[node] = None
        waiting = sorted({*waiting, *node.users})
        if len(found) > 256:
            break
    return list(found)


def _measured(x: Node, result: Node, region: set[Node], values: Values, measured: dict[Any, Any]) -> Turn | str | None:
    numbers: dict[Node, Any] = {x: "x"}
    parts = [str(shape(x))]
    for node in sorted(region):
        numbers[node] = f"n{len(numbers)}"
        arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda item: numbers.get(item, item))
        parts.append(f"{node.target}{arguments}")
    key = tuple(parts)
    if key not in measured:
        try:
            measured[key] = measure(x, result, values)
        except CannotEvaluate:
            measured[key] = None
    return measured[key]


def _write(captured: Captured, x: Node, result: Node, turn: Turn) -> None:
    edit = Editor(captured, result)
    rank = ndim(x)
    order = list(range(rank))
    order[turn.axis], order[rank - 2] = order[rank - 2], order[turn.axis]
    dtype = result.meta["val"].dtype
    moved = edit.permute(_parted(edit, x) if turn.parted else x, order)
    freqs = None
    if turn.freqs is not None:
        path = where(result)
        freqs = edit.weight(f"{path}.rope_freqs" if path else "rope_freqs", turn.freqs, x)
    offset = turn.offset if isinstance(turn.offset, int) else _defined(edit, turn.offset)
    scale = 1.0 if freqs is not None else turn.scale
    made = edit.call(
        rotary, moved, turn.dims, turn.traditional, turn.base, scale, offset, freqs, val=moved.meta["val"].to(dtype)
    )
    rope = made
    if turn.length != 1:
        made = edit.call(torch.ops.aten.mul.Tensor, made, turn.length)
    back = edit.permute(made, order)
    edit.replace(back)
    if back is not made:
        for user in list(back.users):  # the transpose that follows undoes ours
            if traits_of(user).view is View.REORDERED and permutation(user) == order:
                user.replace_all_uses_with(made)
    rope.meta["stack_trace"] = result.meta.get("stack_trace", "")


def _parted(edit: Editor, x: Node) -> Node:
    """Neighbours, which are pairs, as halves."""
    last = ndim(x) - 1
    parts = [edit.call(torch.ops.aten.slice.Tensor, x, last, first, shape(x)[last], 2) for first in (0, 1)]
    val = x.meta["val"]
    with val.fake_mode:
        joined = torch.empty(tuple(val.shape), dtype=val.dtype, device=val.device)
    return edit.call(torch.ops.aten.cat.default, parts, last, val=joined)


def _defined(edit: Editor, size: Node) -> Node:
    """A size as an argument, taken from where it is known."""
    return size if size < edit.anchor else edit.call(size.target, *size.args, val=size.meta["val"])
