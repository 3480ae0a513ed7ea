"""Numbers that a module keeps as tensors without axes become numbers in the code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from mlxport.graph.capture import Captured

__all__ = ["inline_scalars"]

_aten = torch.ops.aten
_BINARY: frozenset[Any] = frozenset(
    getattr(_aten, name).Tensor for name in ("add", "sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge")
)
_COMMUTE: frozenset[Any] = frozenset((_aten.add.Tensor, _aten.mul.Tensor))
_RANK: tuple[Callable[[torch.dtype], bool], ...] = (
    lambda dtype: dtype is torch.bool,
    lambda dtype: not dtype.is_floating_point and not dtype.is_complex,
    lambda dtype: dtype.is_floating_point,
    lambda dtype: dtype.is_complex,
)


def inline_scalars(captured: Captured) -> None:
    """Write constants that no checkpoint has, lifted ones and buffers that are not saved, in place of their uses."""
    written = {name for name, _ in captured.mutations}
    for node, name in list(captured.weights.items()):
        tensor = captured.state[name]
        if tensor.ndim or name in captured.trainable or name in written or tensor.device.type == "meta":
            continue
        if not node.users or tensor.dtype.is_complex or _saved(captured, name):
            continue
        _inline(captured.graph, node, _number(tensor))
        captured.graph.erase_node(node)
        del captured.weights[node]


def _saved(captured: Captured, name: str) -> bool:
    path, _, last = name.rpartition(".")
    module = captured.modules.get(path)
    return module is not None and last in module._buffers and last not in module._non_persistent_buffers_set


def _number(tensor: torch.Tensor) -> int | float | bool:
    """The value, in as few digits as its dtype needs."""
    if not tensor.dtype.is_floating_point:
        return tensor.item()
    value = float(tensor)
    if tensor.dtype is torch.float64:
        return value
    for digits in range(1, 18):
        short = float(f"{value:.{digits}g}")
        if torch.tensor(short, dtype=tensor.dtype).item() == value:
            return short
    return value


def _inline(graph: Graph, node: Node, value: int | float | bool) -> None:
    for user in list(node.users):
        if user.target in _BINARY and len(user.args) == 2 and _wins(user, node):
            first, second = user.args
            if second is node and first is not node:
                user.args = (first, value)
                continue
            if first is node and second is not node and user.target in _COMMUTE and not user.kwargs:
                user.args = (second, value)
                continue
        with graph.inserting_before(user):
            full = graph.call_function(_aten.full.default, ([], value), {"dtype": node.meta["val"].dtype})
        full.meta = {key: user.meta[key] for key in ("nn_module_stack", "stack_trace") if key in user.meta}
        full.meta["val"] = node.meta["val"]
        user.replace_input_with(node, full)


def _wins(user: Node, node: Node) -> bool:
    """Whether the other operand alone decides the dtype of the result, as beside a Python number."""
    others = [item for item in user.args if isinstance(item, Node) and item is not node]
    if len(others) != 1 or not isinstance(others[0].meta.get("val"), torch.Tensor):
        return False
    other, mine = others[0].meta["val"], node.meta["val"]
    return _rank(other.dtype) >= _rank(mine.dtype) and (other.ndim > 0 or other.dtype == mine.dtype)


def _rank(dtype: torch.dtype) -> int:
    return next(index for index, matches in enumerate(_RANK) if matches(dtype))
