"""How permutes sink through ops that can do without them: one rule for each kind of op."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from mlxport.graph.lower.registry import bind
from mlxport.graph.rewrite.channels_last.permutes import aten_name, axes_of, give_back, inverse_of, is_permuted, permute
from mlxport.graph.rewrite.graph_queries import same_size

__all__ = ["RULES"]

_aten = torch.ops.aten

_UNARY = frozenset(
    """abs acos acosh asin asinh atan atanh ceil cos cosh erf erfc exp exp2 expm1 floor frac gelu hardsigmoid hardswish
    hardtanh leaky_relu elu celu selu silu mish log log10 log1p log2 log_sigmoid neg reciprocal relu relu6 round rsqrt
    sigmoid sign sin sinh softplus sqrt square tan tanh trunc clamp clamp_min clamp_max logical_not bitwise_not _to_copy
    softsign softshrink hardshrink tanhshrink threshold sgn isnan isinf nan_to_num to clone pow_Tensor_Scalar zeros_like
    ones_like full_like add_Scalar mul_Scalar""".split()
)
_BINARY = frozenset(
    """add sub mul div pow maximum minimum fmod remainder eq ne lt le gt ge logical_and logical_or logical_xor
    bitwise_and bitwise_or bitwise_xor where atan2 rsub""".split()
)
_REDUCE = frozenset("mean sum amax amin any all prod var std".split())


def _unary(graph: Graph, node: Node, name: str) -> bool:
    source = node.args[0]
    if not is_permuted(source) or any(isinstance(item, Node) for item in node.args[1:]):
        return False
    axes = axes_of(source)
    node.replace_input_with(source, source.args[0])
    return give_back(graph, node, axes)


def _binary(graph: Graph, node: Node, name: str) -> bool:
    ndim = node.meta["val"].ndim
    operands = [item for item in node.args if isinstance(item, Node) and isinstance(item.meta.get("val"), torch.Tensor)]
    permuted = [item for item in operands if is_permuted(item) and item.meta["val"].ndim == ndim]
    if not permuted or node.meta.get("sunk"):
        return False
    axes = axes_of(permuted[0])
    if any(axes_of(item) != axes for item in permuted):
        return False
    others = [item for item in operands if item not in permuted]
    # One operand in the outer order is permuted itself; once only, or its permute would sink in turn.
    if any(not _cheap(item, ndim) and item.op == "placeholder" for item in others):
        return False
    inverse = inverse_of(axes)
    node.meta["sunk"] = True
    for item in permuted:
        node.replace_input_with(item, item.args[0])
    for item in others:
        with graph.inserting_before(node):
            node.replace_input_with(item, _aligned(graph, item, ndim, inverse, node.meta))
    return give_back(graph, node, axes)


def _cheap(item: Node, ndim: int) -> bool:
    """Whether an operand broadcasts (a scale by channel, a scalar): permuting it costs nothing."""
    value = item.meta["val"]
    return sum(not (isinstance(size, int) and size == 1) for size in value.shape) <= 1


def _aligned(graph: Graph, item: Node, ndim: int, inverse: Sequence[int], meta: dict[str, Any]) -> Node:
    """An operand that broadcasts against ``ndim`` axes, in the inner order."""
    value = item.meta["val"]
    if value.ndim == 0:
        return item
    sizes = [1] * (ndim - value.ndim) + list(value.shape)
    inner = [sizes[axis] for axis in inverse]
    while len(inner) > 1 and isinstance(inner[0], int) and inner[0] == 1:
        inner.pop(0)
    order = [axis for axis in inverse if not (isinstance(sizes[axis], int) and sizes[axis] == 1)]
    if order == sorted(order):  # a reshape does it
        return _reshaped(graph, item, inner, meta)
    if value.ndim < ndim:
        item = _reshaped(graph, item, sizes, meta)
    return permute(graph, item, inverse, meta)


def _reshaped(graph: Graph, item: Node, sizes: list[Any], meta: dict[str, Any]) -> Node:
    value = item.meta["val"]
    while str(item.target) in _RESHAPES and isinstance(item.args[0], Node):
        item = item.args[0]
    own = item.meta["val"].shape
    if len(own) == len(sizes) and all(map(same_size, own, sizes)):
        return item
    if all(isinstance(size, int) for size in sizes):
        node = graph.call_function(_aten.view.default, (item, sizes))
        shape = sizes
    else:  # only axes of size one come or go
        return _squeezed(graph, item, value, sizes, meta)
    node.meta = {key: meta[key] for key in ("nn_module_stack", "stack_trace") if key in meta}
    node.meta["val"] = item.meta["val"].new_empty(shape)
    return node


_RESHAPES = frozenset({"aten.view.default", "aten.unsqueeze.default", "aten.reshape.default"})


def _squeezed(graph: Graph, item: Node, value: torch.Tensor, sizes: list[Any], meta: dict[str, Any]) -> Node:
    axes = [axis for axis, size in enumerate(item.meta["val"].shape) if isinstance(size, int) and size == 1]
    node = item
    if axes:
        node = graph.call_function(_aten.squeeze.dims, (item, axes))
        node.meta = {**meta, "val": item.meta["val"].squeeze(axes)}
    for axis, size in enumerate(sizes):
        if isinstance(size, int) and size == 1:
            before = node
            node = graph.call_function(_aten.unsqueeze.default, (before, axis))
            node.meta = {**meta, "val": before.meta["val"].unsqueeze(axis)}
    return node


def _reduce(graph: Graph, node: Node, name: str) -> bool:
    source = node.args[0]
    if not is_permuted(source) or len(node.args) < 2 or not isinstance(node.args[1], list | tuple | int):
        return False
    axes, ndim = axes_of(source), source.meta["val"].ndim
    dims = [node.args[1]] if isinstance(node.args[1], int) else list(node.args[1])
    if not dims:
        return False
    inner = sorted(axes[dim % ndim] for dim in dims)
    keepdim = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
    if name in ("var", "std"):
        keepdim = bool(node.kwargs.get("keepdim", False))
        if len(node.args) > 2:
            return False
    node.args = (source.args[0], inner[0] if isinstance(node.args[1], int) else inner, *node.args[2:])
    if keepdim:
        return give_back(graph, node, axes)
    left = [axis for axis in axes if axis not in inner]  # inner axes that remain, in the outer order
    order = sorted(left)
    return give_back(graph, node, [order.index(axis) for axis in left])


def _concatenate(graph: Graph, node: Node, name: str) -> bool:
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


def _axis_op(graph: Graph, node: Node, name: str) -> bool:
    """One axis argument, rank unchanged: slice, softmax, flip, narrow, cumsum, glu."""
    source = node.args[0]
    if not is_permuted(source):
        return False
    axes, ndim = axes_of(source), source.meta["val"].ndim
    bound = bind(node.target, node.args, dict(node.kwargs))
    key = "dims" if "dims" in bound else "dim"
    dim = bound[key]
    bound[key] = [axes[item % ndim] for item in dim] if isinstance(dim, list | tuple) else axes[dim % ndim]
    arguments = [argument for argument in node.target._schema.arguments]
    node.args = tuple(
        source.args[0] if a.name in ("self", "input") else bound[a.name] for a in arguments if not a.kwarg_only
    )
    node.kwargs = {a.name: bound[a.name] for a in arguments if a.kwarg_only and a.name in bound}
    return give_back(graph, node, axes)


def _transpose(graph: Graph, node: Node, name: str) -> bool:
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


def _split(graph: Graph, node: Node, name: str) -> bool:
    source = node.args[0]
    if not is_permuted(source) or any(user.target is not operator.getitem for user in node.users):
        return False
    axes = axes_of(source)
    bound = bind(node.target, node.args, dict(node.kwargs))
    dim = axes[bound["dim"] % len(axes)]
    sizes = next(value for key, value in bound.items() if key not in ("self", "dim"))
    node.args, node.kwargs = (source.args[0], sizes, dim), {}
    inverse = inverse_of(axes)
    node.meta["val"] = tuple(item.permute(inverse) for item in node.meta["val"])
    for user in list(node.users):
        give_back(graph, user, axes)
    return True


def _squeeze(graph: Graph, node: Node, name: str) -> bool:
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


def _select(graph: Graph, node: Node, name: str) -> bool:
    source = node.args[0]
    if not is_permuted(source):
        return False
    axes = axes_of(source)
    inner = axes[node.args[1] % len(axes)]
    node.args = (source.args[0], inner, node.args[2])
    left = [axis for axis in axes if axis != inner]
    order = sorted(left)
    return give_back(graph, node, [order.index(axis) for axis in left])


def _view(graph: Graph, node: Node, name: str) -> bool:
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
    if aten_name(node) in ("view", "reshape", "_unsafe_view"):
        sizes = node.args[1]
        return sizes[index]
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


def _flatten(graph: Graph, node: Node, name: str) -> bool:
    if any(not isinstance(size, int) for size in node.meta["val"].shape) and _dynamic_count(node) > 1:
        return False
    return _view(graph, node, name)


def _dynamic_count(node: Node) -> int:
    return sum(not isinstance(size, int) for size in node.meta["val"].shape)


def _pad(graph: Graph, node: Node, name: str) -> bool:
    source, pads = node.args[0], list(node.args[1])
    if not is_permuted(source):
        return False
    axes, ndim = axes_of(source), source.meta["val"].ndim
    if (node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")) != "constant" and name == "pad":
        return False
    by_axis = {ndim - 1 - index: pads[2 * index : 2 * index + 2] for index in range(len(pads) // 2)}
    inner = {axes[axis]: pair for axis, pair in by_axis.items()}
    lowest = min(axis for axis in inner)
    flat: list[Any] = []
    for axis in range(ndim - 1, lowest - 1, -1):
        flat += inner.get(axis, [0, 0])
    node.args = (source.args[0], flat, *node.args[2:])
    return give_back(graph, node, axes)


RULES: dict[str, Callable[[Graph, Node, str], bool]] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_REDUCE, _reduce),
    "cat": _concatenate,
    **dict.fromkeys(("slice", "softmax", "_softmax", "log_softmax", "flip", "cumsum", "narrow", "glu"), _axis_op),
    **dict.fromkeys(("split", "chunk", "split_with_sizes"), _split),
    "squeeze": _squeeze,
    "transpose": _transpose,
    "select": _select,
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _view),
    "flatten": _flatten,
    **dict.fromkeys(("constant_pad_nd", "pad"), _pad),
}
