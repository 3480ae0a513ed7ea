"""Find normalisations over axes that are written out: ``x`` over the root of the mean of its squares.

What is found structurally is a guess: ``rms_norm`` and ``layer_norm`` compute it and compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.lower.traits import traits_of
from mlxport.graph.rewrite.fuse.values import Values
from mlxport.graph.rewrite.graph_queries import is_cast, is_float, kind, ndim, peel, shape

__all__ = ["Norm", "NormResult", "find_norm", "inside", "leaks"]

_ROOTS = ("rsqrt", "sqrt", "pow", "std", "linalg_vector_norm", "norm")
_SCALED = ("add", "sub", "mul", "div", "clamp", "clamp_min", "reciprocal", "neg", "maximum", "sqrt", "rsqrt", "pow")
_REDUCTIONS = ("mean", "sum", "var", "var_mean", "std", "linalg_vector_norm", "norm")


@dataclass
class NormResult:
    """A value that may be the norm's result, with the weight and bias that it takes in."""

    node: Node
    weight: Any = None
    bias: Any = None


@dataclass
class Norm:
    """A normalisation of ``x`` over ``axes``.

    Attributes:
        centred: Whether the mean is taken off.
        eps: Numbers added on the way to the root.
        outputs: Possible results, the one with all of weight and bias last.
    """

    x: Node
    axes: list[int]
    centred: bool
    eps: list[float] = field(default_factory=list)
    outputs: list[NormResult] = field(default_factory=list)


def find_norm(root: Node, values: Values) -> Norm | None:
    """The normalisation that the root (or reciprocal root) ``root`` is part of."""
    if kind(root) not in _ROOTS or not is_float(root):
        return None
    if kind(root) == "pow" and (len(root.args) < 2 or abs(values.scalar(root.args[1]) or 0) != 0.5):
        return None
    eps: list[float] = []
    reduction = root if kind(root) in _REDUCTIONS else _reduction(root.args[0], values, eps)
    norm = _reduced(reduction, values) if reduction is not None else None
    if norm is None:
        return None
    norm.centred |= kind(root) not in _REDUCTIONS and _less_square(root.args[0], values)
    norm.eps = eps
    norm.outputs = list(_outputs(root, norm, values, eps))
    return norm if norm.outputs else None


def _reduction(node: Any, values: Values, eps: list[float]) -> Node | None:
    """The mean (sum, variance) that ``node`` is made of by numbers, which go to ``eps`` where they are added."""
    for _ in range(12):
        if kind(node) in _REDUCTIONS:
            return node
        if kind(node) == "getitem" and kind(node.args[0]) in _REDUCTIONS:
            return node.args[0] if node.args[1] == 0 else None
        if is_cast(node) or traits_of(node).shaped:
            node = node.args[0]
            continue
        if kind(node) not in _SCALED:
            return None
        others = [item for item in node.args if values.scalar(item) is None]
        if kind(node) in ("add", "maximum"):
            eps.extend(number for item in node.args if (number := values.scalar(item)) is not None)
        if kind(node) == "sub" and len(others) == 2:  # the mean of squares less the square of the mean
            others = others[:1]
        if len(others) != 1:
            return None
        node = others[0]
    return None


def _less_square(node: Any, values: Values) -> bool:
    """Whether something that is computed is taken off on the way: the square of the mean, off the mean of squares."""
    for _ in range(12):
        if kind(node) in _REDUCTIONS or not (kind(node) in _SCALED or traits_of(node).shaped or traits_of(node).copy):
            return False
        others = [item for item in node.args if isinstance(item, Node) and values.scalar(item) is None]
        if kind(node) == "sub" and len(others) == 2:
            return True
        if not others:
            return False
        node = others[0]
    return False


def _reduced(node: Node, values: Values) -> Norm | None:
    """What is reduced: ``x`` itself, its squares, or those of its distance from the mean."""
    name = kind(node)
    axes = _axes(node)
    if axes is None:
        return None
    inner = peel(node.args[0])
    if name in ("var", "var_mean", "std"):
        return Norm(inner, axes, True)
    if name in ("linalg_vector_norm", "norm"):
        return Norm(inner, axes, False)
    squared = _squared(inner, values)
    if squared is None:
        return None
    z = peel(squared)
    if kind(z) == "sub" and isinstance(z.args[1], Node):
        x = peel(z.args[0])
        mean = _reduction(z.args[1], values, [])
        if mean is not None and peel(mean.args[0]) is x:
            return Norm(x, axes, True)
    return Norm(z, axes, False)


def _squared(node: Any, values: Values) -> Node | None:
    if kind(node) == "pow" and values.scalar(node.args[1]) == 2 or kind(node) == "square":
        return node.args[0]
    if kind(node) == "mul" and peel(node.args[0]) is peel(node.args[1]):
        return node.args[0]
    return None


def _axes(node: Node) -> list[int] | None:
    """The axes that a reduction takes, counted from the front; None for all of them."""
    rank = ndim(node.args[0])
    names = [argument.name for argument in node.target._schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    dims = given.get("dim")
    if dims is None or dims == []:
        return None
    return sorted(axis % rank for axis in ([dims] if isinstance(dims, int) else dims))


def _outputs(root: Node, norm: Norm, values: Values, eps: list[float]) -> Iterator[NormResult]:
    """Follow the root forward: to its product with ``x``, then through casts, weight and bias."""
    node, met = root, False
    weight: Any = None
    bias: Any = None
    for _ in range(16):
        if met:
            yield NormResult(node, weight, bias)
        users = list(node.users)
        if len(users) != 1:
            return
        user = users[0]
        if is_cast(user) or (traits_of(user).shaped and not met):
            node = user
            continue
        if kind(user) not in ("mul", "div", "add", "sub", "reciprocal", "neg", "clamp", "clamp_min", "maximum"):
            return
        other = next((item for item in user.args if item is not node), None)
        if other is None or values.scalar(other) is not None:
            if met and kind(user) in ("add", "sub", "maximum"):
                return
            node = user
        elif kind(user) in ("add", "sub"):
            if not met or bias is not None or not _spans(other, norm):
                return
            node, bias = user, other
        elif kind(user) not in ("mul", "div"):
            return
        elif not met and _is_x(other, norm, values):
            node, met = user, True
        elif weight is None and _spans(other, norm):
            node, weight = user, other
        elif not met and weight is None and (factor := _weighted(other, norm, values)) is not None:
            node, weight, met = user, factor, True
        else:
            return


def _is_x(node: Any, norm: Norm, values: Values) -> bool:
    """Whether ``node`` is what is normalised: ``x``, or its distance from the mean."""
    node = peel(node)
    if node is norm.x:
        return True
    if not norm.centred or kind(node) != "sub" or peel(node.args[0]) is not norm.x:
        return False
    mean = node.args[1]
    while is_cast(mean) or traits_of(mean).shaped:
        mean = mean.args[0]
    if kind(mean) == "getitem":
        mean = mean.args[0]
    found = mean if kind(mean) in _REDUCTIONS else _reduction(mean, values, [])
    return found is not None and peel(found.args[0]) is norm.x


def _weighted(node: Any, norm: Norm, values: Values) -> Any:
    """The weight in ``x * weight``."""
    node = peel(node)
    if kind(node) != "mul":
        return None
    for x, weight in (node.args, node.args[::-1]):
        if _is_x(x, norm, values) and _spans(weight, norm):
            return weight
    return None


def _spans(node: Any, norm: Norm) -> bool:
    """Whether a tensor holds one number for each place along the normalised axes and is broadcast over the others."""
    if not isinstance(node, Node) or not is_float(node):
        return False
    rank = ndim(norm.x)
    own = shape(node)
    if len(own) > rank or any(not isinstance(size, int) for size in own):
        return False
    full = (1,) * (rank - len(own)) + own
    sizes = shape(norm.x)
    return all(full[axis] == (sizes[axis] if axis in norm.axes else 1) for axis in range(rank))


def inside(output: Node, x: Node) -> set[Node]:
    """The nodes that depend on the values of ``x`` and that ``output``, which is one of them, is computed from."""
    after: set[Node] = set()
    stack = [output]
    while stack:
        node = stack.pop()
        if node not in after and node is not x and x < node:  # what comes before x does not depend on it
            after.add(node)
            stack.extend(node.all_input_nodes)
    found: set[Node] = set()
    for node in sorted(after):
        is_size = isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int | float)
        if not is_size and any(item is x or item in found for item in node.all_input_nodes):
            found.add(node)
    return found


def leaks(nodes: set[Node], output: Node) -> Node | None:
    """A node among ``nodes`` that something outside of them uses, casts and the output left out."""
    for node in nodes:
        if node is not output and not is_cast(node) and any(user not in nodes for user in node.users):
            return node
    return None
