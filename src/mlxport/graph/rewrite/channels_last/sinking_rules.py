"""How permutes sink through ops that can do without them: one rule for each kind of op."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from mlxport.graph.lower.registry import bind
from mlxport.graph.lower.traits import traits_of
from mlxport.graph.rewrite.channels_last.permutes import (
    axes_of,
    give_back,
    inverse_of,
    is_permuted,
    permute,
    result_ndim,
)
from mlxport.graph.rewrite.channels_last.pointwise import follows_places, sink_pointwise

__all__ = ["rule_for"]

Rule = Callable[[Graph, Node], bool]

_aten = torch.ops.aten
# Computed along the axes of one argument, each place beside them by itself, the rank unchanged.
_ALONG = ("slice", "softmax", "_softmax", "_safe_softmax", "log_softmax", "_log_softmax", "flip", "roll", "cumsum",
          "cumprod", "logcumsumexp", "narrow", "glu")  # fmt: skip


# Positions in the flattened input, which is in the outer order.
_IN_ORDER = frozenset({"argmax", "argmin", "hash_tensor"})


def _reduce(graph: Graph, node: Node) -> bool:
    """Along axes that are named: the same ones, wherever they are. Along all of them, their order does not matter."""
    source = node.args[0]
    if not is_permuted(source):
        return False
    axes, ndim = axes_of(source), source.meta["val"].ndim
    bound = bind(node.target, node.args, dict(node.kwargs))
    key = "dims" if "dims" in bound else "dim"
    dims = bound.get(key)
    given = [dims] if isinstance(dims, int) else list(dims or ())
    if not given:
        if result_ndim(node) or traits_of(node).name in _IN_ORDER:
            return False
        node.replace_input_with(source, source.args[0])
        return True
    inner = sorted(axes[dim % ndim] for dim in given)
    bound[key] = inner[0] if isinstance(dims, int) else inner
    _rebind(node, bound, source)
    if bound.get("keepdim"):
        return give_back(graph, node, axes)
    left = [axis for axis in axes if axis not in inner]  # inner axes that remain, in the outer order
    order = sorted(left)
    return give_back(graph, node, [order.index(axis) for axis in left])


def _rebind(node: Node, bound: dict[str, Any], source: Node) -> None:
    """Call ``node`` with the arguments ``bound``, without trailing defaults, on what is permuted."""
    arguments = [argument for argument in node.target._schema.arguments if argument.name in bound]
    while arguments and not arguments[-1].kwarg_only and bound[arguments[-1].name] == arguments[-1].default_value:
        if not arguments[-1].has_default_value():
            break
        arguments.pop()
    node.args = tuple(
        source.args[0] if bound[a.name] is source else bound[a.name] for a in arguments if not a.kwarg_only
    )
    node.kwargs = {a.name: bound[a.name] for a in arguments if a.kwarg_only and bound[a.name] != a.default_value}


def _concatenate(graph: Graph, node: Node) -> bool:
    items = list(node.args[0])
    permuted = [item for item in items if is_permuted(item)]
    axes = axes_of(permuted[0])
    if any(axes_of(item) != axes for item in permuted) or any(item.op == "placeholder" for item in items):
        return False
    if node.meta.get("sunk"):
        return False
    node.meta["sunk"] = True
    dim = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(axes)
    inverse = inverse_of(axes)
    with graph.inserting_before(node):
        inner = [item.args[0] if is_permuted(item) else permute(graph, item, inverse, node.meta) for item in items]
    node.args, node.kwargs = (inner, axes[dim]), {}
    return give_back(graph, node, axes)


def _axis_op(graph: Graph, node: Node) -> bool:
    """An op of ``_ALONG``."""
    source = node.args[0]
    if not is_permuted(source):
        return False
    axes, ndim = axes_of(source), source.meta["val"].ndim
    bound = bind(node.target, node.args, dict(node.kwargs))
    key = "dims" if "dims" in bound else "dim"
    dim = bound[key]
    if dim == []:  # ``roll`` of the flattened input
        return False
    bound[key] = [axes[item % ndim] for item in dim] if isinstance(dim, list | tuple) else axes[dim % ndim]
    _rebind(node, bound, source)
    return give_back(graph, node, axes)


def _transpose(graph: Graph, node: Node) -> bool:
    """Another permute: the two are one."""
    source = node.args[0]
    if not is_permuted(source):
        return False
    order = list(range(node.meta["val"].ndim))
    first, second = (axis % len(order) for axis in node.args[1:3])
    order[first], order[second] = second, first
    with graph.inserting_before(node):
        merged = permute(graph, source, order, node.meta)
    node.replace_all_uses_with(merged)
    graph.erase_node(node)
    return True


def _split(graph: Graph, node: Node) -> bool:
    source = node.args[0]
    if not is_permuted(source) or any(user.target is not operator.getitem for user in node.users):
        return False
    axes = axes_of(source)
    bound = bind(node.target, node.args, dict(node.kwargs))
    dim = axes[bound["dim"] % len(axes)]
    sizes = next(value for key, value in bound.items() if key not in ("self", "dim"))
    node.args, node.kwargs = (source.args[0], sizes, dim), {}
    return give_back(graph, node, axes)


def _squeeze(graph: Graph, node: Node) -> bool:
    source = node.args[0]
    if not is_permuted(source) or len(node.args) < 2:
        return False
    axes, ndim = axes_of(source), source.meta["val"].ndim
    dims = [node.args[1]] if isinstance(node.args[1], int) else list(node.args[1])
    inner = [axes[dim % ndim] for dim in dims]
    if node.meta["val"].ndim != ndim - len(inner):
        return False
    node.args = (source.args[0], inner[0] if isinstance(node.args[1], int) else inner)
    left = [axis for axis in axes if axis not in inner]
    order = sorted(left)
    return give_back(graph, node, [order.index(axis) for axis in left])


def _select(graph: Graph, node: Node) -> bool:
    source = node.args[0]
    if not is_permuted(source):
        return False
    axes = axes_of(source)
    inner = axes[node.args[1] % len(axes)]
    node.args = (source.args[0], inner, node.args[2])
    left = [axis for axis in axes if axis != inner]
    order = sorted(left)
    return give_back(graph, node, [order.index(axis) for axis in left])


def _view(graph: Graph, node: Node) -> bool:
    """A reshape of a permuted array: it passes where it only merges axes that are neighbours in the inner order too."""
    source = node.args[0]
    if not is_permuted(source):
        return False
    value, result = source.meta["val"], node.meta["val"]
    axes = axes_of(source)
    groups = _merged(list(value.shape), list(result.shape))
    if groups is None:
        return False
    inner_groups = []
    for group in groups:
        real = [axis for axis in group if not _is_one(value.shape[axis])]
        inner = [axes[axis] for axis in real]
        if inner != list(range(min(inner, default=0), min(inner, default=0) + len(inner))) and not _adjacent(
            inner, source.args[0].meta["val"]
        ):
            return False
        inner_groups.append(inner)
    order = sorted(range(len(groups)), key=lambda index: min(inner_groups[index], default=len(axes) + index))
    sizes = [_shape_argument(node, index) for index in range(len(groups))]
    target = _aten.view.default
    node.target = target
    node.args, node.kwargs = (source.args[0], [sizes[index] for index in order]), {}
    return give_back(graph, node, [order.index(index) for index in range(len(groups))])


def _adjacent(inner: list[int], value: torch.Tensor) -> bool:
    """Whether the axes follow each other once axes of size one are left out."""
    real = [axis for axis in range(value.ndim) if not _is_one(value.shape[axis])]
    positions = [real.index(axis) for axis in inner]
    return positions == list(range(positions[0], positions[0] + len(positions))) if positions else True


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _shape_argument(node: Node, index: int) -> Any:
    if traits_of(node).sized:
        return node.args[1][index]
    size = node.meta["val"].shape[index]
    return size if isinstance(size, int) else -1


def _merged(sizes: list[Any], result: list[Any]) -> list[list[int]] | None:
    """For each result axis the axes that it merges, or None where an axis is split or a size is not provable."""
    groups: list[list[int]] = []
    position = 0
    for want in result:
        group: list[int] = []
        product: Any = 1
        while position < len(sizes) and not _equal(product, want):
            group.append(position)
            product = product * sizes[position]
            position += 1
        if not _equal(product, want):
            return None
        groups.append(group)
    rest = list(range(position, len(sizes)))
    if any(not _is_one(sizes[axis]) for axis in rest) or not groups:
        return None
    groups[-1].extend(rest)
    return groups


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    left = a.node.expr if isinstance(a, torch.SymInt) else a
    right = b.node.expr if isinstance(b, torch.SymInt) else b
    return bool(left == right)


def _flatten(graph: Graph, node: Node) -> bool:
    if any(not isinstance(size, int) for size in node.meta["val"].shape) and _dynamic_count(node) > 1:
        return False
    return _view(graph, node)


def _dynamic_count(node: Node) -> int:
    return sum(not isinstance(size, int) for size in node.meta["val"].shape)


def _pad(graph: Graph, node: Node) -> bool:
    source, pads = node.args[0], list(node.args[1])
    if not is_permuted(source):
        return False
    axes, ndim = axes_of(source), source.meta["val"].ndim
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    if traits_of(node).name == "pad" and mode != "constant":
        return False
    by_axis = {ndim - 1 - index: pads[2 * index : 2 * index + 2] for index in range(len(pads) // 2)}
    inner = {axes[axis]: pair for axis, pair in by_axis.items()}
    lowest = min(axis for axis in inner)
    flat: list[Any] = []
    for axis in range(ndim - 1, lowest - 1, -1):
        flat += inner.get(axis, [0, 0])
    node.args = (source.args[0], flat, *node.args[2:])
    return give_back(graph, node, axes)


# What is done for ops that are not told by their traits alone.
_RULES: dict[str, Rule] = {
    "cat": _concatenate,
    **dict.fromkeys(_ALONG, _axis_op),
    **dict.fromkeys(("split", "chunk", "split_with_sizes"), _split),
    "squeeze": _squeeze,
    "transpose": _transpose,
    "select": _select,
    "flatten": _flatten,
    **dict.fromkeys(("constant_pad_nd", "pad"), _pad),
}


def rule_for(node: Node) -> Rule | None:
    """How permutes pass the node, None if they do not."""
    kind = traits_of(node)
    if (rule := _RULES.get(kind.name)) is not None:
        return rule
    if kind.reduction:
        return _reduce
    if kind.sized:
        return _view
    return sink_pointwise if follows_places(node) else None
