"""Constants in the code of a module, and scalars that no checkpoint has, become numbers and lists of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.fused_ops import literal
from mlxport.graph.lower.registry import LOWERINGS
from mlxport.graph.lower.traits import traits

__all__ = ["inline_constants"]

_MOST = 32  # elements of a constant that is written into the code

_aten = torch.ops.aten
# Ops that may take a number first as well as second.
_COMMUTE: frozenset[Any] = frozenset((_aten.add.Tensor, _aten.mul.Tensor))
_RANK: tuple[Callable[[torch.dtype], bool], ...] = (
    lambda dtype: dtype is torch.bool,
    lambda dtype: not dtype.is_floating_point and not dtype.is_complex,
    lambda dtype: dtype.is_floating_point,
    lambda dtype: dtype.is_complex,
)


def inline_constants(captured: Captured) -> None:
    """Write constants that no checkpoint has, lifted ones and scalar buffers that are not saved, into the code."""
    written = {name for name, _ in captured.mutations}
    for node, name in list(captured.weights.items()):
        tensor = captured.state[name]
        if name in captured.trainable or name in written or tensor.device.type == "meta" or not node.users:
            continue
        if tensor.dtype.is_complex or not (_lifted(captured, name) or not tensor.ndim and not _saved(captured, name)):
            continue
        if not tensor.ndim:
            _inline(captured.graph, node, _number(tensor))
        elif 0 < tensor.numel() <= _MOST:
            _spell(captured.graph, node, tensor)
        else:
            continue
        captured.graph.erase_node(node)
        del captured.weights[node]


def _lifted(captured: Captured, name: str) -> bool:
    """Whether the tensor is one that the code makes, not an attribute of a module."""
    path, _, last = name.rpartition(".")
    module = captured.modules.get(path)
    return last.startswith("lifted_tensor_") and (module is None or not hasattr(module, last))


def _spell(graph: Graph, node: Node, tensor: torch.Tensor) -> None:
    def listed(part: torch.Tensor) -> Any:
        return [listed(item) for item in part] if part.ndim else _number(part)

    first = next(item for item in graph.nodes if item in node.users)
    with graph.inserting_before(first):
        made = graph.call_function(literal, (listed(tensor), tensor.dtype))
    made.meta = {key: first.meta[key] for key in ("nn_module_stack", "stack_trace") if key in first.meta}
    made.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(made)


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
        if _takes_numbers(user.target) and len(user.args) == 2 and _wins(user, node):
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


def _takes_numbers(target: Any) -> bool:
    """Whether the lowering of a pointwise op is that of its overload with a number in the second place."""
    number = getattr(getattr(target, "overloadpacket", None), "Scalar", None)
    lowering = LOWERINGS.get(str(target))
    return traits(target).pointwise and lowering is not None and lowering is LOWERINGS.get(str(number))


def _wins(user: Node, node: Node) -> bool:
    """Whether the other operand alone decides the dtype of the result, as beside a Python number."""
    others = [item for item in user.args if isinstance(item, Node) and item is not node]
    if len(others) != 1 or not isinstance(others[0].meta.get("val"), torch.Tensor):
        return False
    other, mine = others[0].meta["val"], node.meta["val"]
    return _rank(other.dtype) >= _rank(mine.dtype) and (other.ndim > 0 or other.dtype == mine.dtype)


def _rank(dtype: torch.dtype) -> int:
    return next(index for index, matches in enumerate(_RANK) if matches(dtype))
