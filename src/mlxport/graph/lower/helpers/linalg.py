"""Linear algebra on top of MLX's decompositions, which run on the CPU."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx


def logdet(x: mx.array) -> mx.array:
    """Logarithm of the determinant, NaN where that is negative."""
    sign, logarithm = mx.linalg.slogdet(x, stream=mx.cpu)
    return mx.where(sign < 0, mx.nan, logarithm)


def solve(a: mx.array, b: mx.array, left: bool = True) -> mx.array:
    """X of ``a @ X = b`` (or ``X @ a = b``) for batches of matrices, and of vectors where ``b`` has an axis less."""
    vector = b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1])
    b = b[..., None] if vector else b
    if not left:
        a, b = a.swapaxes(-1, -2), b.swapaxes(-1, -2)
    batch = mx.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = mx.broadcast_to(a, (*batch, *a.shape[-2:])), mx.broadcast_to(b, (*batch, *b.shape[-2:]))
    x = mx.linalg.solve(a, b, stream=mx.cpu)
    x = x if left else x.swapaxes(-1, -2)
    return x.squeeze(-1) if vector else x


def solve_triangular(
    a: mx.array, b: mx.array, upper: bool = False, left: bool = True, unitriangular: bool = False
) -> mx.array:
    """X of ``a @ X = b`` (or ``X @ a = b``) with triangular matrices, on whose diagonals 1 is assumed if wanted."""
    a = mx.triu(a) if upper else mx.tril(a)
    if unitriangular:
        a = mx.where(mx.eye(a.shape[-1], dtype=mx.bool_), mx.array(1, dtype=a.dtype), a)
    if not left:
        a, b, upper = a.swapaxes(-1, -2), b.swapaxes(-1, -2), not upper
    batch = mx.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = mx.broadcast_to(a, (*batch, *a.shape[-2:])), mx.broadcast_to(b, (*batch, *b.shape[-2:]))
    x = mx.linalg.solve_triangular(a, b, upper=upper, stream=mx.cpu)
    return x if left else x.swapaxes(-1, -2)


def cholesky_solve(b: mx.array, factor: mx.array, upper: bool = False) -> mx.array:
    """X of ``L @ L.T @ X = b``, the factor L given (or its transpose, if ``upper``)."""
    lower = factor.swapaxes(-1, -2) if upper else factor
    return solve_triangular(lower.swapaxes(-1, -2), solve_triangular(lower, b), upper=True)


def reduced_svd(a: mx.array) -> Any:
    """Singular value decomposition with as many singular vectors as values."""
    u, s, vt = mx.linalg.svd(a, stream=mx.cpu)
    return u[..., : s.shape[-1]], s, vt[..., : s.shape[-1], :]


def empty_svd(a: mx.array, full_matrices: bool = True) -> Any:
    """Singular value decomposition of matrices without elements."""
    rows, columns = a.shape[-2:]
    count = min(rows, columns)
    u = mx.broadcast_to(
        mx.eye(rows, rows if full_matrices else count), (*a.shape[:-2], rows, rows if full_matrices else count)
    )
    vt_rows = columns if full_matrices else count
    vt = mx.broadcast_to(mx.eye(vt_rows, columns), (*a.shape[:-2], vt_rows, columns))
    return u, mx.zeros((*a.shape[:-2], count)), vt


def empty_qr(a: mx.array, mode: str) -> Any:
    """QR decomposition of matrices without elements."""
    rows, columns = a.shape[-2:]
    count = rows if mode == "complete" else min(rows, columns)
    q = mx.zeros(0) if mode == "r" else mx.broadcast_to(mx.eye(rows, count), (*a.shape[:-2], rows, count))
    return q, mx.zeros((*a.shape[:-2], count, columns))


def complete_qr(a: mx.array) -> Any:
    """QR decomposition with a square Q: that of the matrix with unit columns appended."""
    rows, columns = a.shape[-2:]
    unit = mx.broadcast_to(mx.eye(rows, dtype=a.dtype), (*a.shape[:-2], rows, rows))
    q, r = mx.linalg.qr(mx.concatenate([a, unit], axis=-1), stream=mx.cpu)
    return q, r[..., :columns]


def symmetric(a: mx.array) -> mx.array:
    """The symmetric matrix with this lower triangle."""
    return mx.tril(a) + mx.tril(a, -1).swapaxes(-1, -2)


def pinv(a: mx.array, atol: mx.array | None = None, rtol: mx.array | None = None) -> mx.array:
    """Pseudo-inverse: singular values up to ``max(atol, rtol * largest)`` count as 0."""
    u, s, vt = reduced_svd(a)
    if rtol is None:
        usual = mx.finfo(a.dtype).eps * max(a.shape[-2:])
        rtol = mx.array(usual) if atol is None else mx.where(atol > 0, 0.0, usual)
    limit = mx.array(rtol)[..., None] * s[..., :1]
    limit = limit if atol is None else mx.maximum(atol[..., None], limit)
    inverse = mx.where(s > limit, 1 / s, 0.0)
    return (vt.swapaxes(-1, -2) * inverse[..., None, :]) @ u.swapaxes(-1, -2)


def lstsq(a: mx.array, b: mx.array, rcond: float | None = None) -> mx.array:
    """The smallest X with the least ``norm(a @ X - b)``; vectors where ``b`` has an axis less."""
    inverse = pinv(a) if rcond is None else pinv(a, rtol=mx.array(rcond))
    return (inverse @ b[..., None]).squeeze(-1) if b.ndim == a.ndim - 1 else inverse @ b


def squared_residuals(a: mx.array, b: mx.array, x: mx.array) -> mx.array:
    """Sums of the squares of ``a @ x - b``."""
    if b.ndim == a.ndim - 1:
        return mx.square((a @ x[..., None]).squeeze(-1) - b).sum(axis=-1)
    return mx.square(a @ x - b).sum(axis=-2)


def rank(a: mx.array, rcond: float | None = None) -> mx.array:
    """How many singular values are not negligible."""
    s = mx.linalg.svd(a, compute_uv=False, stream=mx.cpu)
    rcond = mx.finfo(a.dtype).eps * max(a.shape[-2:]) if rcond is None else rcond
    return (s > rcond * s[..., :1]).astype(mx.int64).sum(axis=-1)


def matrix_exp(a: mx.array) -> mx.array:
    """Exponential of square matrices: the Taylor polynomial of degree 8 of ``a / 2**n``, squared n times (n < 24).

    Bader, Blanes, Casas: Computing the Matrix Exponential with an Optimized Taylor Polynomial Approximation, 2019.
    """
    norm = mx.abs(a).sum(axis=-2).max(axis=-1)[..., None, None]
    squarings = mx.clip(mx.ceil(mx.log2(mx.maximum(norm, 1e-30))) + 1, 0, 23)  # the scaled norm is at most 1/2
    a = a * mx.power(mx.array(2.0), -squarings)
    result = mx.broadcast_to(mx.eye(a.shape[-1]).astype(a.dtype), a.shape)
    for degree in range(8, 0, -1):  # Horner's scheme
        result = mx.eye(a.shape[-1]).astype(a.dtype) + a @ result / degree
    for done in range(23):
        result = mx.where(done < squarings, result @ result, result)
    return result


def vector_norm(x: mx.array, ord: float, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> mx.array:  # noqa: A002
    """The ``ord``-norm of the numbers along the axes, taken as one vector."""
    size = mx.abs(x)
    if ord == 0:
        return (size != 0).astype(size.dtype).sum(axis=axis, keepdims=keepdims)
    if math.isinf(ord):
        return (size.max if ord > 0 else size.min)(axis=axis, keepdims=keepdims)
    return mx.power(mx.power(size, ord).sum(axis=axis, keepdims=keepdims), 1 / ord)
