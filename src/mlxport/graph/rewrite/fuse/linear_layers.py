"""Linear layers in their other spellings -> ``aten.linear``, so ``nn.Linear`` where the weight is a module's.

``addmm``, ``x @ W.T + b``, ``x @ W + b`` (a weight stored as (in, out)), ``einsum`` with a matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.traits import View, traits_of
from mlxport.graph.rewrite.fuse.fusion import Fusion
from mlxport.graph.rewrite.fuse.products import contraction
from mlxport.graph.rewrite.fuse.values import Values
from mlxport.graph.rewrite.graph_queries import (
    Editor,
    is_float,
    kind,
    ndim,
    permutation,
    same_shape,
    same_size,
    shape,
    where,
)

__all__ = ["apply"]

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Product:
    """``x @ weight.T`` (``swapped``: ``x @ weight``) plus ``bias``."""

    x: Node
    weight: Node
    swapped: bool
    bias: Node | None = None


def apply(captured: Captured, values: Values) -> Iterable[Fusion]:
    """Fuse every product with a matrix that is a weight, and the bias that is added to it."""
    for node in list(captured.graph.nodes):
        found = _product(captured, node) if node.op == "call_function" else None
        if found is None:
            continue
        output, bias = _biased(captured, node, found)
        output, x = _unflattened(output, found.x)
        edit = Editor(captured, output)
        weight = edit.call(_aten.t.default, found.weight) if found.swapped else found.weight
        arguments = (x, weight) if bias is None else (x, weight, bias)
        edit.replace(edit.call(_aten.linear.default, *arguments, val=output.meta["val"]))
        yield Fusion("linear", where(node))


def _product(captured: Captured, node: Node) -> _Product | None:
    name = kind(node)
    if not is_float(node):
        return None
    if name == "linear":
        without = len(node.args) < 3 and node.kwargs.get("bias") is None
        return _with_weight(captured, node.args[0], node.args[1], True) if without and _alone(captured, node) else None
    if name in ("mm", "matmul", "linalg_matmul"):
        return _with_weight(captured, node.args[0], node.args[1], False)
    if name == "addmm":
        bias, x, matrix = node.args[:3]
        if node.kwargs.get("beta", 1) != 1 or node.kwargs.get("alpha", 1) != 1 or not _is_bias(captured, bias, node):
            return None
        found = _with_weight(captured, x, matrix, False)
        return None if found is None else _Product(found.x, found.weight, found.swapped, bias)
    if name == "einsum" and (product := contraction(node)) is not None:
        for x, axes, weight, letters in (
            (product.a, product.left, product.b, product.right),
            (product.b, product.right, product.a, product.left),
        ):
            if len(letters) == 2 and _is_weight(captured, weight) and _sums_last(axes, letters, product.result):
                return _Product(x, weight, letters[0] == axes[-1])
    return None


def _alone(captured: Captured, node: Node) -> bool:
    """Whether a linear op without bias is followed by its bias."""
    users = list(node.users)
    if len(users) != 1 or kind(users[0]) != "add":
        return False
    other = next((item for item in users[0].args[:2] if item is not node), None)
    name, bias = captured.weights.get(node.args[1], ""), captured.weights.get(other, "")  # type: ignore[arg-type]
    return bool(name) and name.rpartition(".")[0] == bias.rpartition(".")[0] and _is_bias(captured, other, node)


def _sums_last(axes: str, letters: str, result: str) -> bool:
    """Whether the equation is ``...i,oi->...o`` or ``...i,io->...o``."""
    rest = letters.replace(axes[-1], "", 1)
    return axes[-1] in letters and len(rest) == 1 and result == axes[:-1] + rest


def _with_weight(captured: Captured, x: Any, matrix: Any, is_linear: bool) -> _Product | None:
    """The product of ``x`` and a weight, which may be transposed."""
    if ndim(matrix) != 2 or ndim(x) < 1 or x in captured.weights:
        return None
    if _is_weight(captured, matrix):
        return _Product(x, matrix, not is_linear)
    if traits_of(matrix).view is View.REORDERED and _is_weight(captured, matrix.args[0]):
        turned = permutation(matrix) == [1, 0]
        return _Product(x, matrix.args[0], turned is is_linear)
    return None


def _is_weight(captured: Captured, node: Any) -> bool:
    return isinstance(node, Node) and node in captured.weights and is_float(node) and ndim(node) == 2


def _is_bias(captured: Captured, node: Any, output: Node) -> bool:
    if not isinstance(node, Node) or node not in captured.weights or ndim(node) != 1:
        return False
    return same_size(shape(node)[0], shape(output)[-1]) and node.meta["val"].dtype == output.meta["val"].dtype


def _biased(captured: Captured, node: Node, found: _Product) -> tuple[Node, Node | None]:
    """The sum with the bias, if that is what becomes of the product."""
    if found.bias is not None:
        return node, found.bias
    output = node
    while len(output.users) == 1 and _reshapes(user := next(iter(output.users))) and _keeps_last(user):
        output = user
    if len(output.users) == 1:
        user = next(iter(output.users))
        if (
            kind(user) == "add"
            and user.kwargs.get("alpha", 1) == 1
            and same_shape(user.meta["val"], output.meta["val"])
        ):
            other = user.args[1] if user.args[0] is output else user.args[0]
            if _is_bias(captured, other, output):
                if output is not node:  # the views come after the bias
                    return _sunk(captured, node, output, user), other
                return user, other
    return node, None


def _reshapes(node: Node) -> bool:
    return traits_of(node).view is View.RESHAPED


def _keeps_last(node: Node) -> bool:
    return ndim(node) > 0 and ndim(node.args[0]) > 0 and same_size(shape(node)[-1], shape(node.args[0])[-1])


def _sunk(captured: Captured, node: Node, output: Node, total: Node) -> Node:
    """Add the bias before the views that stand between the product and the sum; gives the new sum."""
    bias = total.args[1] if total.args[0] is output else total.args[0]
    total.replace_all_uses_with(output)
    captured.graph.erase_node(total)
    with captured.graph.inserting_after(node):
        made = captured.graph.call_function(_aten.add.Tensor, (node, bias))
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    return made


def _unflattened(output: Node, x: Node) -> tuple[Node, Node]:
    """Without the views that make a matrix of ``x`` and give the result the shape of ``x`` back."""
    users = list(output.users)
    if not _reshapes(x) or not _keeps_last(x) or not users:
        return output, x
    source = x.args[0]
    wanted = (*shape(source)[:-1], shape(output)[-1])
    if any(not _reshapes(user) or len(shape(user)) != len(wanted) for user in users):
        return output, x
    if any(not all(map(same_size, shape(user), wanted)) for user in users):
        return output, x
    first = min(users)
    for user in users:
        if user is not first:
            user.replace_all_uses_with(first)
    return first, source
