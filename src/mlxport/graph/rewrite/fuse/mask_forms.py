"""What form an attention mask has, found by computing it at several sizes: causal, a sliding window, hiding nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.rewrite.fuse.values import CannotEvaluate, Values, symbols
from mlxport.graph.rewrite.graph_queries import kind

__all__ = ["mask_form", "numbers_of"]

_HIDDEN = -1e4  # an added mask hides what it makes smaller than this
_LARGEST = 2048  # a mask of up to this length is computed to see what it does at a number that it mentions


def mask_form(
    mask: Node, values: Values, lengths: tuple[Any, Any], visible: bool | None = True, factor: float = 1.0
) -> str | int | None:
    """``"none"`` for a mask that hides nothing, ``"causal"``, the window of a sliding one; None for others.

    It is computed at several sizes, and at those around each number that its formula mentions.

    Args:
        mask: Truth values, or what is added to scores.
        values: Computes it.
        lengths: Number of queries and of keys.
        visible: Which truth value shows a key; None for an added mask.
        factor: What an added mask is multiplied with.
    """
    values.learn(mask)
    if mask not in values.static:
        return None
    verdicts: set[str | int | None] = set()
    for sizes, numbers in _trials(mask, values, lengths):
        try:
            (found,) = values.run([mask], {}, sizes, numbers)
            rows, columns = (values.number(length, sizes) for length in lengths)
        except CannotEvaluate:
            if numbers:
                return None
            continue
        verdict = _verdict(found, rows, columns, visible, factor)
        if isinstance(verdict, int) and numbers:
            ((large, small),) = numbers.items() if len(numbers) == 1 else ((None, 0),)
            verdict = None if large is None else large + verdict - small
        verdicts.add(verdict)
        if verdict is None:
            return None
    if any(isinstance(verdict, int) for verdict in verdicts):  # up to its window, a sliding mask is causal
        verdicts.discard("causal")
    return verdicts.pop() if len(verdicts) == 1 else None


def _trials(mask: Node, values: Values, lengths: tuple[Any, Any]) -> Iterator[tuple[Any, dict[int, int]]]:
    """Sizes to compute a mask at, and numbers to put in the place of those that are too large to try."""
    small = list(values.sizes())
    yield from ((sizes, {}) for sizes in small)
    axes = {symbol for length in lengths if not isinstance(length, int) for symbol in length.node.expr.free_symbols}
    axes &= symbols([mask])
    if not axes:
        return
    found = numbers_of(mask, values)
    for number in sorted(found):
        if number <= _LARGEST:
            limit = min(values.captured.ranges.get(str(symbol), (0, _LARGEST + 2))[1] for symbol in axes)
            yield {**small[0], **dict.fromkeys(axes, min(number + 2, limit))}, {}
    large = [number for number in found if number > _LARGEST]
    if large:
        yield from (({**small[0], **dict.fromkeys(axes, 12)}, dict.fromkeys(large, stand_in)) for stand_in in (4, 7))


def numbers_of(mask: Node, values: Values) -> set[int]:
    """Integers that the formula of a mask mentions, and the lengths of the buffers in it."""
    found: set[int] = set()
    seen: set[Node] = set()
    stack = [mask]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in values.captured.weights:
            found |= {size for size in node.meta["val"].shape if isinstance(size, int)}
            continue
        numbers = torch.utils._pytree.tree_leaves((node.args, node.kwargs))
        ends = kind(node) == "slice"
        found |= {
            abs(int(n)) for n in numbers if type(n) in (int, float) and abs(n) < 2**31 and not (ends and n > 2**20)
        }
        stack.extend(node.all_input_nodes)
    return {number for number in found if number > 2}


def _verdict(found: torch.Tensor, rows: int, columns: int, visible: bool | None, factor: float) -> str | int | None:
    if visible is None:
        if not bool(((found == 0) | (found * factor <= _HIDDEN)).all()):
            return None
        shown = found == 0
    else:
        shown = found.to(torch.bool) if visible else ~found.to(torch.bool)
    if shown.ndim < 2:
        shown = shown.reshape((1,) * (2 - shown.ndim) + tuple(shown.shape))
    if bool(shown.all()):
        return "none"
    if shown.shape[-2:] != (rows, columns) or rows > columns or columns == 1:
        return None
    triangle = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
    if bool((shown == triangle).all()):
        return "causal"
    window = int(shown.reshape(-1, rows, columns)[0, -1].sum())
    band = triangle & ~triangle.tril(columns - rows - window)
    return window if window and bool((shown == band).all()) else None
