"""Activation functions written out -> gelu, silu and the like; gates over two halves -> ``nn.glu``.

A value that is computed from one ``x`` element by element is a curve: it is compared with the curves that MLX has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.fx import Node
from torch.nn import functional

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.fused_ops import quick_gelu
from mlxport.graph.lower.traits import traits_of
from mlxport.graph.rewrite.fuse.fusion import Fusion
from mlxport.graph.rewrite.fuse.norms import inside, leaks
from mlxport.graph.rewrite.fuse.values import CannotEvaluate, Values
from mlxport.graph.rewrite.graph_queries import Editor, is_float, kind, ndim, same_shape, same_size, shape, where

__all__ = ["apply"]

_aten = torch.ops.aten
# The functions that the curves below are made of.
_CORES = ("erf", "tanh", "sigmoid", "exp", "softplus", "clamp", "hardtanh", "relu6", "erfc", "hardsigmoid")
_POINTS = torch.cat([torch.linspace(-12, 12, 241, dtype=torch.float64), torch.tensor([-60.0, -30.0, 30.0, 60.0])])

# Each curve with how a node of it is made. The exact ones come first.
_CURVES: list[tuple[str, Callable[..., torch.Tensor], Callable[[Editor, Node], Node]]] = [
    ("gelu", functional.gelu, lambda edit, x: edit.call(_aten.gelu.default, x)),
    (
        "gelu",
        lambda x: functional.gelu(x, approximate="tanh"),
        lambda edit, x: edit.call(_aten.gelu.default, x, approximate="tanh"),
    ),
    ("gelu", quick_gelu, lambda edit, x: edit.call(quick_gelu, x, val=x.meta["val"])),
    ("silu", functional.silu, lambda edit, x: edit.call(_aten.silu.default, x)),
    ("mish", functional.mish, lambda edit, x: edit.call(_aten.mish.default, x)),
    ("hardswish", functional.hardswish, lambda edit, x: edit.call(_aten.hardswish.default, x)),
    ("sigmoid", torch.sigmoid, lambda edit, x: edit.call(_aten.sigmoid.default, x)),
    ("softplus", functional.softplus, lambda edit, x: edit.call(_aten.softplus.default, x)),
]


def apply(captured: Captured, values: Values) -> Iterable[Fusion]:
    """Fuse activations that are written out, then gates."""
    for node in list(captured.graph.nodes):
        if kind(node) in _CORES and node.users and is_float(node):
            yield from _activation(captured, node, values)
    for node in list(captured.graph.nodes):
        if kind(node) == "mul" and node.users and _gate(captured, node, values):
            yield Fusion("glu", where(node))


def _activation(captured: Captured, core: Node, values: Values) -> Iterable[Fusion]:
    for x in _roots(core, values):
        for output in reversed(_reached(x, core, values)):
            region = inside(output, x)
            if core not in region or leaks(region, output) is not None or len(region) < 2:
                continue
            for name, curve, make in _CURVES:
                if _follows(x, output, curve, values):
                    place = where(output)
                    edit = Editor(captured, output)
                    made = make(edit, x)
                    made.meta["val"] = output.meta["val"]
                    edit.replace(made)
                    yield Fusion(name, place)
                    return
    return


def _roots(core: Node, values: Values) -> list[Node]:
    """What ``core`` may be a function of, element by element, nearest first."""
    found: dict[Node, None] = {}
    level = [item for item in core.all_input_nodes if item not in values.static]
    for _ in range(8):
        after: list[Node] = []
        for node in level:
            if node not in found and is_float(node):
                found[node] = None
                if traits_of(node).pointwise:
                    after.extend(item for item in node.all_input_nodes if item not in values.static)
        level = after
    return list(found)


def _reached(x: Node, core: Node, values: Values) -> list[Node]:
    """Values computed from ``x`` alone, element by element, with ``core``."""
    known, found = {x}, []
    waiting = sorted(x.users)
    while waiting and len(known) < 32:
        node = waiting.pop(0)
        if node in known or not traits_of(node).pointwise or not is_float(node):
            continue
        if any(item not in known and values.scalar(item) is None for item in node.all_input_nodes):
            continue
        if not same_shape(node.meta["val"], x.meta["val"]):
            continue
        known.add(node)
        if core <= node and node.meta["val"].dtype == x.meta["val"].dtype:
            found.append(node)
        waiting = sorted({*waiting, *node.users})
    return found


def _follows(x: Node, output: Node, curve: Callable[..., torch.Tensor], values: Values) -> bool:
    try:
        (got,) = values.run([output], {x: _POINTS}, {})
    except CannotEvaluate:
        return False
    wanted = curve(_POINTS)
    finite = torch.isfinite(got)  # exp overflows far out, in torch as in float32
    if not bool(finite[:241].all()) or got.shape != wanted.shape:
        return False
    return bool(((got - wanted).abs() <= 2e-7 * (1 + wanted.abs()))[finite].all())


def _gate(captured: Captured, node: Node, values: Values) -> bool:
    """``a * sigmoid(b)`` of the halves of one axis."""
    for half, gate in (node.args[:2], node.args[1::-1]):
        if kind(gate) != "sigmoid" or len(gate.users) != 1:
            continue
        first, second = _half(half), _half(gate.args[0])
        if first is None or second is None or first[:2] != second[:2] or (first[2], second[2]) != (0, 1):
            continue
        edit = Editor(captured, node)
        edit.replace(edit.call(_aten.glu.default, first[0], first[1], val=node.meta["val"]))
        return True
    return False


def _half(node: Any) -> tuple[Node, int, int] | None:
    """What ``node`` is a half of, along which axis, and which half (0 or 1)."""
    if kind(node) == "getitem" and kind(node.args[0]) in ("split", "chunk", "split_with_sizes", "tensor_split"):
        parts = node.args[0]
        if len(parts.meta["val"]) != 2:
            return None
        source = parts.args[0]
        axis = parts.args[2] if len(parts.args) > 2 else parts.kwargs.get("dim", 0)
        return _checked(node, source, axis % ndim(source), node.args[1])
    if kind(node) == "slice" and (len(node.args) < 5 or node.args[4] == 1):
        source = node.args[0]
        axis = (node.args[1] if len(node.args) > 1 else 0) % ndim(source)
        start = node.args[2] if len(node.args) > 2 and node.args[2] is not None else 0
        whole = shape(source)[axis]
        starts = {0: 0, whole // 2: 1, -(whole // 2): 1} if isinstance(whole, int) and isinstance(start, int) else {}
        return _checked(node, source, axis, starts.get(start))
    return None


def _checked(node: Node, source: Node, axis: int, which: Any) -> tuple[Node, int, int] | None:
    whole, part = shape(source)[axis], shape(node)[axis]
    if not isinstance(whole, int) or not isinstance(part, int) or whole != 2 * part or which not in (0, 1):
        return None
    others = [
        same_size(a, b) for index, (a, b) in enumerate(zip(shape(source), shape(node), strict=True)) if index != axis
    ]
    return (source, axis, which) if all(others) else None
