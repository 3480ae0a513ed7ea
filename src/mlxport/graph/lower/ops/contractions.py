"""Sums of products over named or numbered axes: einsum, tensordot, outer, inner, kron, cross."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxport.graph.lower.axes import axis, known
from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import contractions as helper
from mlxport.graph.lower.ops.common import is_complex, is_float
from mlxport.graph.lower.ops.matmul import product
from mlxport.graph.lower.registry import call, op


def inexact(array: Expr) -> bool:
    """Whether MLX multiplies matrices of this dtype."""
    return is_float(array) or is_complex(array)


def explicit(equation: str, ranks: Sequence[int]) -> str:
    """The equation with letters for the ellipsis, and with an output."""
    equation = equation.replace(" ", "").replace("...", ".")
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    free = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if letter not in equation]
    most = max((rank - len(term) + 1 for rank, term in zip(ranks, terms, strict=True) if "." in term), default=0)
    letters = "".join(free[:most])
    if not arrow:
        once = sorted(letter for letter in set(inputs) - {",", "."} if inputs.count(letter) == 1)
        output = ("." if "." in inputs else "") + "".join(once)
    full = [
        term.replace(".", letters[most - (rank - len(term) + 1) :]) for rank, term in zip(ranks, terms, strict=True)
    ]
    return ",".join(full) + "->" + output.replace(".", letters)


@op("aten.einsum.default")
def einsum(equation: str, tensors: Sequence[Expr], path: Sequence[int] | None = None) -> Expr:
    """``mx.einsum``; ``path`` is about the order of the products only."""
    if inexact(tensors[0]):
        simple = "..." not in equation and "->" in equation
        return mx.einsum(equation if simple else explicit(equation, [t.ndim for t in tensors]), *tensors)
    return call(helper.integer_einsum, explicit(equation, [t.ndim for t in tensors]), *tensors)


@op("aten.outer.default", "aten.ger.default")
def outer(self: Expr, vec2: Expr) -> Expr:
    """``x[:, None] * y``."""
    return self[:, None] * vec2


@op("aten.inner.default")
def inner(self: Expr, other: Expr) -> Expr:
    """Products of last axes; of a scalar, plain products."""
    if self.ndim == 0 or other.ndim == 0:
        return self * other
    return mx.inner(self, other) if inexact(self) else call(helper.integer_inner, self, other)


@op("aten.tensordot.default")
def tensordot(self: Expr, other: Expr, dims_self: Sequence[int], dims_other: Sequence[int]) -> Expr:
    """``mx.tensordot``."""
    axes = [[axis(dim, self.ndim) for dim in dims_self], [axis(dim, other.ndim) for dim in dims_other]]
    for ours, theirs in zip(*axes, strict=True):  # a size of 1 goes with all of the other array's
        sizes = self.shape[ours], other.shape[theirs]
        if known(*sizes) and sizes[0] != sizes[1]:
            if sizes[1] == 1:
                self = self.sum(axis=ours, keepdims=True)
            else:
                other = other.sum(axis=theirs, keepdims=True)
    if inexact(self) and self.ndim and other.ndim:
        return mx.tensordot(self, other, axes=axes)
    letters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    left, right = [next(letters) for _ in range(self.ndim)], [next(letters) for _ in range(other.ndim)]
    for ours, theirs in zip(*axes, strict=True):
        right[theirs] = left[ours]
    output = [letter for letter in left + right if (letter in left) != (letter in right)]
    return einsum(f"{''.join(left)},{''.join(right)}->{''.join(output)}", [self, other])


@op("aten.kron.default")
def kron(self: Expr, other: Expr) -> Expr:
    """``mx.kron``."""
    return mx.kron(self, other)


@op("aten.linalg_vecdot.default")
def vecdot(x: Expr, y: Expr, dim: int = -1) -> Expr:
    """``(conj(x) * y).sum(dim)``."""
    return ((mx.conj(x) if is_complex(x) else x) * y).sum(axis=dim)


@op("aten.linalg_cross.default")
def cross(self: Expr, other: Expr, dim: int = -1) -> Expr:
    """``mx.linalg.cross``."""
    options: dict[str, Any] = {} if dim == -1 else {"axis": dim}
    return mx.linalg.cross(self, other, **options)


@op("aten.linalg_multi_dot.default")
def multi_dot(tensors: Sequence[Expr]) -> Expr:
    """``a @ b @ c``, in the order written."""
    result = tensors[0]
    for item in tensors[1:]:
        result = product(result, item)
    return result
