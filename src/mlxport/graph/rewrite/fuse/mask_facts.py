"""What is known of an attention mask before it is computed: whether every query may see a key, whether it is causal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from mlxport.graph.lower.fused_ops import sliding_window

if TYPE_CHECKING:
    from mlxport.graph.rewrite.fuse.values import Values

__all__ = ["every_row_sees", "recognise"]

_SAME_ROWS = ("aten.expand.default", "aten.clone.default", "aten.alias.default", "aten.detach.default")
_OR = ("aten.bitwise_or.Tensor", "aten.logical_or.default", "aten.__or__.Tensor")
_AND = ("aten.bitwise_and.Tensor", "aten.logical_and.default", "aten.__and__.Tensor")
_ONES = ("aten.ones.default", "aten.new_ones.default", "aten.ones_like.default")
_FULL = ("aten.full.default", "aten.new_full.default", "aten.full_like.default")


def every_row_sees(mask: object) -> bool:
    """Whether each row (last axis) of a mask surely shows a key; False where that is not known."""
    if not isinstance(mask, Node):
        return False
    if not _is_bool(mask):
        return _finite(mask)
    key, args = str(mask.target), mask.args
    if _all_true(mask) or _keeps_rows(mask) and every_row_sees(args[0]) or mask.target is sliding_window:
        return True
    if key in _OR:
        return any(map(every_row_sees, args))
    if key in _AND:
        return any(every_row_sees(a) and _all_true(b) for a, b in (args, args[::-1]))
    if key == "aten.tril.default":
        diagonal = args[1] if len(args) > 1 else 0
        return isinstance(diagonal, int) and diagonal >= 0 and _all_true(args[0])
    if key == "aten.le.Tensor":  # the first key, number 0, is not after any query
        return _counts_keys(args[0]) and _not_negative(args[1])
    return key == "aten.ge.Tensor" and _counts_keys(args[1]) and _not_negative(args[0])


_FINITE = frozenset("permute unsqueeze expand view transpose add mul div _to_copy slice select squeeze reshape".split())


def _finite(node: object) -> bool:
    """Whether an added mask is made of learned numbers: a table of biases by distance."""
    if not isinstance(node, Node):
        return isinstance(node, int | float)
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    if name == "embedding":
        return isinstance(node.args[0], Node) and node.args[0].op == "placeholder"
    tensors = [item for item in node.all_input_nodes if isinstance(item.meta.get("val"), torch.Tensor)]
    return name in _FINITE and bool(tensors) and all(map(_finite, tensors))


def _is_bool(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype is torch.bool


def _keeps_rows(node: Node) -> bool:
    """Whether the node has its input's rows: repeated, or under more axes before the last."""
    if str(node.target) == "aten.unsqueeze.default":
        return node.args[1] not in (-1, node.meta["val"].ndim - 1)
    return str(node.target) in _SAME_ROWS


def _all_true(node: object) -> bool:
    if not isinstance(node, Node) or not _is_bool(node):
        return False
    if str(node.target) in _FULL:
        return node.args[-1] is True
    return str(node.target) in _ONES or _keeps_rows(node) and _all_true(node.args[0])


def _arange_from(node: Node) -> int | None:
    """The first number of an ascending ``arange`` of integers."""
    if node.meta["val"].dtype.is_floating_point:
        return None
    if str(node.target) == "aten.arange.default":
        return 0
    start = node.args[0] if str(node.target) in ("aten.arange.start", "aten.arange.start_step") else None
    step = node.args[2] if len(node.args) > 2 else 1
    return start if isinstance(start, int) and isinstance(step, int) and step > 0 else None


def _counts_keys(node: object) -> bool:
    """Whether the last axis counts from 0."""
    if not isinstance(node, Node):
        return False
    return _arange_from(node) == 0 or _keeps_rows(node) and _counts_keys(node.args[0])


def _not_negative(node: object) -> bool:
    if not isinstance(node, Node):
        return False
    start = _arange_from(node)
    moved = str(node.target) == "aten.unsqueeze.default" or _keeps_rows(node)
    return (start is not None and start >= 0) or (moved and _not_negative(node.args[0]))


_HIDDEN = -1e4  # an added mask hides what it makes smaller than this
_LARGEST = 2048  # a mask of up to this length is computed to see what it does at a number that it mentions


def recognise(
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
    from mlxport.graph.rewrite.fuse.values import CannotEvaluate

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
    from mlxport.graph.rewrite.fuse.values import symbols

    small = list(values.sizes())
    yield from ((sizes, {}) for sizes in small)
    axes = {symbol for length in lengths if not isinstance(length, int) for symbol in length.node.expr.free_symbols}
    axes &= symbols([mask])
    if not axes:
        return
    found = _numbers(mask, values)
    for number in sorted(found):
        if number <= _LARGEST:
            limit = min(values.captured.ranges.get(str(symbol), (0, _LARGEST + 2))[1] for symbol in axes)
            yield {**small[0], **dict.fromkeys(axes, min(number + 2, limit))}, {}
    large = [number for number in found if number > _LARGEST]
    if large:
        yield from (({**small[0], **dict.fromkeys(axes, 12)}, dict.fromkeys(large, stand_in)) for stand_in in (4, 7))


def _numbers(mask: Node, values: Values) -> set[int]:
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
        ends = str(node.target) in ("aten.slice.Tensor",)
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
    band = triangle & ~triangle.tril(-window)
    return window if rows == columns and window and bool((shown == band).all()) else None
