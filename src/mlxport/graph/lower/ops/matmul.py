"""Products of matrices and vectors."""

from __future__ import annotations

from typing import Any

import mlx.core

from mlxport.graph.lower import fused_ops as targets
from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import matmul as helper
from mlxport.graph.lower.ops.common import is_complex, is_float, is_integer
from mlxport.graph.lower.registry import LOWERINGS, call, fused, op, refuse


def product(a: Expr, b: Expr) -> Expr:
    """``a @ b``; MLX multiplies no integer matrices, so these are composed."""
    return a @ b if is_float(a) or is_complex(a) else call(helper.integer_matmul, a, b)


@op("aten.mm.default", "aten.bmm.default")
def mm(self: Expr, mat2: Expr) -> Expr:
    """``x @ y``."""
    return product(self, mat2)


@op("aten.mm.dtype", "aten.bmm.dtype")
def mm_dtype(self: Expr, mat2: Expr, out_dtype: mlx.core.Dtype) -> Expr:
    """``x @ y`` of narrow floats with a wide result."""
    return self.astype(out_dtype) @ mat2.astype(out_dtype)


@op("aten._int_mm.default")
def int_mm(self: Expr, mat2: Expr) -> Expr:
    """``x @ y`` of int8 in int32."""
    return call(helper.integer_matmul, self.astype(mx.int32), mat2)


@op("aten._weight_int8pack_mm.default")
def weight_int8pack_mm(self: Expr, mat2: Expr, scales: Expr) -> Expr:
    """``(x @ w.T) * scales`` with int8 weights."""
    return (self @ mat2.T.astype(self.dtype)) * scales


@op("aten.matmul.default", "aten.linalg_matmul.default")
def matmul(self: Expr, other: Expr) -> Expr:
    """``x @ y``."""
    return product(self, other)


@op("aten.dot.default")
def dot(self: Expr, tensor: Expr) -> Expr:
    """``x @ y`` of vectors."""
    return product(self, tensor)


@op("aten.mv.default")
def mv(self: Expr, vec: Expr) -> Expr:
    """``matrix @ vector``."""
    return product(self, vec)


@op("aten.vdot.default")
def vdot(self: Expr, other: Expr) -> Expr:
    """``conj(x) @ y``."""
    return product(mx.conj(self) if is_complex(self) else self, other)


def factor_for(x: Expr, factor: Any) -> Any:
    """A factor of a product: torch cuts those of integers to integers."""
    return int(factor) if isinstance(factor, float) and is_integer(x) else factor


def added(self: Expr, a: Expr, b: Expr, beta: Any, alpha: Any) -> Expr:
    """``beta * self + alpha * (a @ b)``; a beta of 0 ignores even what is not finite in ``self``."""
    beta, alpha = (factor_for(self, factor) for factor in (beta, alpha))
    if beta == 0:
        result = product(a, b)
        return result if alpha == 1 else alpha * result
    if is_float(a) and self.ndim <= 2 <= b.ndim and isinstance(beta, int | float) and isinstance(alpha, int | float):
        options = {"alpha": float(alpha), "beta": float(beta)}
        return mx.addmm(self, a, b, **{name: value for name, value in options.items() if value != 1})
    result = product(a, b)
    return (self if beta == 1 else beta * self) + (result if alpha == 1 else alpha * result)


@op("aten.addmm.default")
def addmm(self: Expr, mat1: Expr, mat2: Expr, beta: Any = 1, alpha: Any = 1) -> Expr:
    """``beta * self + alpha * (mat1 @ mat2)``."""
    return added(self, mat1, mat2, beta, alpha)


@op("aten.baddbmm.default")
def baddbmm(self: Expr, batch1: Expr, batch2: Expr, beta: Any = 1, alpha: Any = 1) -> Expr:
    """``beta * self + alpha * (batch1 @ batch2)``."""
    return added(self, batch1, batch2, beta, alpha)


@op("aten.addmv.default")
def addmv(self: Expr, mat: Expr, vec: Expr, beta: Any = 1, alpha: Any = 1) -> Expr:
    """``beta * self + alpha * (mat @ vec)``."""
    return added(self, mat, vec, beta, alpha)


@op("aten.addbmm.default")
def addbmm(self: Expr, batch1: Expr, batch2: Expr, beta: Any = 1, alpha: Any = 1) -> Expr:
    """``beta * self + alpha * (batch1 @ batch2).sum(axis=0)``."""
    beta, alpha = (factor_for(self, factor) for factor in (beta, alpha))
    result = product(batch1, batch2).sum(axis=0)
    result = result if alpha == 1 else alpha * result
    return result if beta == 0 else (self if beta == 1 else beta * self) + result


@op("aten.addr.default")
def addr(self: Expr, vec1: Expr, vec2: Expr, beta: Any = 1, alpha: Any = 1) -> Expr:
    """``beta * self + alpha * outer(vec1, vec2)``."""
    beta, alpha = (factor_for(self, factor) for factor in (beta, alpha))
    result = vec1[:, None] * vec2
    result = result if alpha == 1 else alpha * result
    return result if beta == 0 else (self if beta == 1 else beta * self) + result


@fused(targets.gather_mm)
def gather_mm(x: Expr, weight: Expr, experts: Expr, ascending: bool | Expr = False, bias: Expr | None = None) -> Expr:
    """``mx.gather_mm``."""
    options = {} if ascending is False else {"sorted_indices": ascending}
    product = mx.gather_mm(x, weight, rhs_indices=experts, **options)
    return product if bias is None else product + mx.expand_dims(bias[experts], -2)


def grouped_mm(input: Expr, weight: Expr, offs: Expr) -> Expr:
    """Consecutive rows, up to each offset, with a matrix of their own; transformers' op of that name."""
    return call(helper.grouped_mm, input, weight, offs)


LOWERINGS["transformers.grouped_mm_fallback.default"] = grouped_mm  # an op of transformers, which may not be there


@op("aten._grouped_mm.default")
def _grouped_mm(
    self: Expr, mat2: Expr, offs: Expr | None = None, bias: Expr | None = None, out_dtype: Any = None
) -> Expr:
    """``grouped_mm`` of rows; groups of columns and batches are refused."""
    refuse(offs is None or self.ndim != 2 or mat2.ndim != 3, "groups that are not of rows")
    refuse(bias is not None or out_dtype is not None, "a bias or another dtype within the product")
    return call(helper.grouped_mm, self, mat2, offs)
