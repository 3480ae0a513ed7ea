"""Factors in LAPACK's compact forms: LU with pivots, Householder vectors, LDL."""

from __future__ import annotations

from typing import Any

import mlx.core as _mx

from mlxport.graph.lower.axes import known
from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import factors as helper
from mlxport.graph.lower.ops.indexing import empty
from mlxport.graph.lower.ops.linalg import no_info, real, solution_shape
from mlxport.graph.lower.registry import call, call_host, op, refuse


def factorable(matrix: Expr, pivot: bool = True) -> None:
    """Refuse what has no LU factors here."""
    real(matrix)
    refuse(not pivot, "LU without pivots")
    refuse(not known(*matrix.shape[-2:]), "LU factors of a dynamic size")


@op("aten.linalg_lu.default")
def lu(A: Expr, pivot: bool = True) -> Any:  # noqa: N803
    """P, L and U of ``A = P @ L @ U``."""
    factorable(A, pivot)
    return call(helper.empty_lu if empty(A) else helper.lu, A)


@op("aten.linalg_lu_factor.default")
def lu_factor(A: Expr, pivot: bool = True) -> Any:  # noqa: N803
    """L and U in one matrix, and the row that each row was exchanged with, from 1."""
    factorable(A, pivot)
    if empty(A):
        return A, mx.zeros((*A.shape[:-2], min(A.shape[-2:])), dtype=mx.int32)
    return call(helper.lu_factor, A)


@op("aten.linalg_lu_factor_ex.default")
def lu_factor_ex(A: Expr, pivot: bool = True, check_errors: bool = False) -> Any:  # noqa: N803
    """``linalg.lu_factor``; that a matrix is singular is not found out."""
    factors = lu_factor(A, pivot)
    return (*factors, no_info(A)) if isinstance(factors, tuple) else (factors[0], factors[1], no_info(A))


@op("aten.lu_unpack.default")
def lu_unpack(LU_data: Expr, LU_pivots: Expr, unpack_data: bool = True, unpack_pivots: bool = True) -> Any:  # noqa: N803
    """P, L and U from the compact form; what is not wanted is empty."""
    real(LU_data)
    none = mx.zeros(0, dtype=LU_data.dtype)
    rows = LU_data.shape[-2]
    permutation = call(helper.permutation_matrix, LU_pivots, rows, LU_data.dtype) if unpack_pivots else none
    if not unpack_data:
        return permutation, none, none
    return permutation, call(helper.unit_lower, LU_data), call(helper.upper_part, LU_data)


@op("aten.linalg_lu_solve.default")
def lu_solve(LU: Expr, pivots: Expr, B: Expr, left: bool = True, adjoint: bool = False) -> Expr:  # noqa: N803
    """X of ``A @ X = B`` with the LU factors of A; ``adjoint``: of its transpose; not ``left``: of ``X @ A = B``."""
    real(LU, B)
    if empty(LU) or empty(B):
        return B
    options = ({} if left else {"left": False}) | ({"adjoint": True} if adjoint else {})
    return call(helper.lu_solve, LU, pivots, B, **options)


@op("aten.geqrf.default")
def geqrf(self: Expr) -> Any:
    """R and the Householder vectors in one matrix, and their factors."""
    real(self)
    refuse(not known(*self.shape[-2:]), "QR factors of a dynamic size")
    if empty(self):
        return self, mx.zeros((*self.shape[:-2], min(self.shape[-2:])))
    return call(helper.geqrf, self)


@op("aten.linalg_householder_product.default", "aten.orgqr.default")
def householder_product(input: Expr | None = None, tau: Any = None, self: Any = None, input2: Any = None) -> Expr:
    """The first columns of the product of Householder reflections."""
    vectors, factors = (input, tau) if input is not None else (self, input2)
    assert vectors is not None
    refuse(not known(*vectors.shape[-2:]), "Householder vectors of a dynamic size")
    return vectors if empty(vectors) else call(helper.householder_product, vectors, factors)


@op("aten.ormqr.default")
def ormqr(self: Expr, input2: Expr, input3: Expr, left: bool = True, transpose: bool = False) -> Expr:
    """``Q @ C``, ``Q.T @ C``, ``C @ Q`` or ``C @ Q.T`` with the product Q of all Householder reflections."""
    refuse(not known(*self.shape[-2:]), "Householder vectors of a dynamic size")
    if empty(input3):
        return input3
    options = ({} if left else {"left": False}) | ({"transpose": True} if transpose else {})
    return call(helper.ormqr, self, input2, input3, **options)


@op("aten.linalg_ldl_factor.default")
def ldl_factor(self: Expr, hermitian: bool = False) -> Any:
    """L and D of ``A = L @ D @ L.T`` in one matrix, and the rows that were exchanged, as LAPACK gives them."""
    real(self)
    shape = self.value.shape
    if empty(self):
        return self, mx.zeros(self.shape[:-1], dtype=mx.int32)
    return call_host(helper.ldl_factor, [_mx.zeros(shape), _mx.zeros(shape[:-1], dtype=_mx.int32)], self)


@op("aten.linalg_ldl_factor_ex.default")
def ldl_factor_ex(self: Expr, hermitian: bool = False, check_errors: bool = False) -> Any:
    """``linalg.ldl_factor``; that a matrix is singular is not found out."""
    factors = ldl_factor(self, hermitian)
    return (*factors, no_info(self)) if isinstance(factors, tuple) else (factors[0], factors[1], no_info(self))


@op("aten.linalg_ldl_solve.default")
def ldl_solve(LD: Expr, pivots: Expr, B: Expr, hermitian: bool = False) -> Expr:  # noqa: N803
    """X of ``A @ X = B`` with the factors of ``linalg.ldl_factor``."""
    real(LD, B)
    if empty(LD) or empty(B):
        return B
    return call_host(helper.ldl_solve, _mx.zeros(solution_shape(LD, B, True)), LD, pivots, B)
