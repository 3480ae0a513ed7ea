"""LAPACK's compact factors, for batches of small matrices."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlxport.graph.lower.helpers.linalg import solve, solve_triangular


def unit_lower(lu: mx.array) -> mx.array:
    """The lower factor: below the diagonal of the compact form, with ones on it."""
    count = min(lu.shape[-2:])
    return mx.tril(lu[..., :count], -1) + mx.eye(lu.shape[-2], count, dtype=lu.dtype)


def upper_part(lu: mx.array) -> mx.array:
    """The upper factor: the diagonal of the compact form and above."""
    return mx.triu(lu[..., : min(lu.shape[-2:]), :])


def permuted_rows(pivots: mx.array, rows: int) -> mx.array:
    """The order of the rows after row i was exchanged with row ``pivots[i]`` (from 1), one after the other."""
    order = mx.broadcast_to(mx.arange(rows), (*pivots.shape[:-1], rows))
    place = mx.arange(rows)
    for step in range(pivots.shape[-1]):
        other = pivots[..., step, None].astype(place.dtype) - 1
        swapped = mx.where(place == step, other, mx.where(place == other, step, place))
        order = mx.take_along_axis(order, swapped, axis=-1)
    return order


def permutation_matrix(pivots: mx.array, rows: int, dtype: mx.Dtype) -> mx.array:
    """P of ``A = P @ L @ U`` from the exchanges of rows."""
    order = permuted_rows(pivots, rows)
    return (mx.arange(rows)[:, None] == order[..., None, :]).astype(dtype)


def lu_factor(a: mx.array) -> Any:
    """L and U in one matrix, and the row (from 1) that each row was exchanged with."""
    lu, pivots = mx.linalg.lu_factor(a, stream=mx.cpu)
    return lu, pivots.astype(mx.int32) + 1


def lu(a: mx.array) -> Any:
    """P, L and U of ``a = P @ L @ U``."""
    compact, pivots = lu_factor(a)
    return permutation_matrix(pivots, a.shape[-2], a.dtype), unit_lower(compact), upper_part(compact)


def empty_lu(a: mx.array) -> Any:
    """P, L and U of matrices without elements."""
    rows, columns = a.shape[-2:]
    unit = mx.broadcast_to(mx.eye(rows), (*a.shape[:-2], rows, rows))
    return unit, unit[..., : min(rows, columns)], mx.zeros((*a.shape[:-2], min(rows, columns), columns))


def lu_solve(lu: mx.array, pivots: mx.array, b: mx.array, left: bool = True, adjoint: bool = False) -> mx.array:
    """X of ``A @ X = b`` (or ``X @ A = b``) with the LU factors of A, or of its transpose if ``adjoint``."""
    b = b if left else b.swapaxes(-1, -2)
    permutation = permutation_matrix(pivots, lu.shape[-2], lu.dtype)
    if left != adjoint:
        b = permutation.swapaxes(-1, -2) @ b
        x = solve_triangular(lu, solve_triangular(lu, b, unitriangular=True), upper=True)
    else:
        upper = lu.swapaxes(-1, -2)
        x = solve_triangular(upper, solve_triangular(upper, b), upper=True, unitriangular=True)
        x = permutation @ x
    return x if left else x.swapaxes(-1, -2)


def geqrf(a: mx.array) -> Any:
    """R above the Householder vectors in one matrix, and the factors of the reflections, as in LAPACK."""
    rows, columns = a.shape[-2:]
    place, factors = mx.arange(rows), []
    for step in range(min(rows, columns)):
        column = a[..., step]
        pivot = column[..., step : step + 1]
        tail = mx.where(place > step, column, 0)
        rest = mx.square(tail).sum(axis=-1, keepdims=True)
        length = mx.sqrt(mx.square(pivot) + rest)
        beta = mx.where(rest > 0, mx.where(pivot > 0, -length, length), pivot)
        scale = mx.where(rest > 0, pivot - beta, 1)
        vector = tail / scale + (place == step)  # 1 at the pivot
        tau = mx.where(rest > 0, (beta - pivot) / mx.where(rest > 0, beta, 1), 0)
        factors.append(tau)
        reflected = a - (tau * vector)[..., None] * (vector[..., None, :] @ a)
        kept = mx.where((place > step), vector, mx.where(place == step, beta, column))
        reflected = mx.where(mx.arange(columns) == step, kept[..., None], reflected)
        a = mx.where(mx.arange(columns) < step, a, reflected)
    return a, mx.concatenate(factors, axis=-1)


def reflections(vectors: mx.array, tau: mx.array, c: mx.array, reverse: bool) -> mx.array:
    """The Householder reflections, from the last to the first or (``reverse``) the other way, applied to ``c``."""
    place = mx.arange(vectors.shape[-2])
    steps = range(tau.shape[-1])
    for step in steps if reverse else steps[::-1]:
        vector = mx.where(place > step, vectors[..., step], 0) + (place == step)
        c = c - (tau[..., step, None] * vector)[..., None] * (vector[..., None, :] @ c)
    return c


def householder_product(vectors: mx.array, tau: mx.array) -> mx.array:
    """The first columns of the product of the reflections, as many as there are vectors."""
    rows, columns = vectors.shape[-2:]
    unit = mx.broadcast_to(mx.eye(rows, columns, dtype=vectors.dtype), vectors.shape)
    return reflections(vectors, tau, unit, reverse=False)


def ormqr(vectors: mx.array, tau: mx.array, c: mx.array, left: bool = True, transpose: bool = False) -> mx.array:
    """``Q @ c`` (or ``Q.T @ c``, ``c @ Q``, ``c @ Q.T``) with the product Q of all reflections."""
    if not left:
        return ormqr(vectors, tau, c.swapaxes(-1, -2), transpose=not transpose).swapaxes(-1, -2)
    return reflections(vectors, tau, c, reverse=transpose)


def ldl_steps(a: list[list[float]]) -> list[int]:
    """Factor a symmetric matrix (lists, lower triangle) in place by Bunch and Kaufman; pivots as LAPACK's ssytf2."""
    n, k = len(a), 0
    pivots = [0] * n
    while k < n:
        below = range(k + 1, n)
        largest = max(below, key=lambda i: abs(a[i][k]), default=k)
        size, other, width = abs(a[largest][k]) if k + 1 < n else 0.0, k, 1
        alpha = (1 + 17**0.5) / 8
        if max(abs(a[k][k]), size) > 0 and abs(a[k][k]) < alpha * size:
            row = [abs(a[largest][j]) for j in range(k, largest)] + [abs(a[i][largest]) for i in range(largest + 1, n)]
            if abs(a[k][k]) * max(row) < alpha * size * size:
                other = largest
                width = 1 if abs(a[largest][largest]) >= alpha * max(row) else 2
        swap = k + width - 1
        if other != swap:  # exchange rows and columns, in the lower triangle and right of column k
            for i in range(other + 1, n):
                a[i][swap], a[i][other] = a[i][other], a[i][swap]
            for j in range(swap + 1, other):
                a[j][swap], a[other][j] = a[other][j], a[j][swap]
            a[swap][swap], a[other][other] = a[other][other], a[swap][swap]
            if width == 2:
                a[k + 1][k], a[other][k] = a[other][k], a[k + 1][k]
        if width == 1:
            pivots[k] = other + 1
            if a[k][k]:
                for j in below:
                    for i in range(j, n):
                        a[i][j] -= a[i][k] * a[j][k] / a[k][k]
                for i in below:
                    a[i][k] /= a[k][k]
        else:
            pivots[k] = pivots[k + 1] = -(other + 1)
            p, q, r = a[k][k], a[k + 1][k], a[k + 1][k + 1]
            det = p * r - q * q
            for j in range(k + 2, n):
                first = (r * a[j][k] - q * a[j][k + 1]) / det
                second = (p * a[j][k + 1] - q * a[j][k]) / det
                for i in range(j, n):
                    a[i][j] -= a[i][k] * first + a[i][k + 1] * second
                a[j][k], a[j][k + 1] = first, second
        k += width
    return pivots


def ldl_factor(a: mx.array) -> Any:
    """L and D of ``a = L @ D @ L.T`` in one matrix, and LAPACK's pivots; waits for the values of ``a``."""
    matrices = a.reshape(-1, *a.shape[-2:]).tolist()
    pivots = [ldl_steps(matrix) for matrix in matrices]
    factors = mx.array(matrices, dtype=mx.float32).reshape(a.shape)
    return mx.tril(factors), mx.array(pivots, dtype=mx.int32).reshape(a.shape[:-1])


def ldl_standard(factor: list[list[float]], pivots: list[int]) -> Any:
    """Apply each exchange of rows to the columns of L before it; all exchanges; where D has 2 x 2 blocks."""
    n, k = len(factor), 0
    order, double = list(range(n)), [0.0] * n
    while k < n:
        width = 2 if pivots[k] < 0 else 1
        swap, other = k + width - 1, abs(pivots[k]) - 1
        order[swap], order[other] = order[other], order[swap]
        factor[swap][:k], factor[other][:k] = factor[other][:k], factor[swap][:k]
        double[k] = float(width == 2)  # whether element (k + 1, k) belongs to D and not to L
        k += width
    return order, double


def ldl_solve(factors: mx.array, pivots: mx.array, b: mx.array) -> mx.array:
    """X of ``A @ X = b`` with the factors of ``ldl_factor``; waits for the values of the pivots."""
    n, shape = factors.shape[-1], factors.shape
    matrices = factors.reshape(-1, n, n).tolist()
    rows = pivots.reshape(-1, n).tolist()
    pairs = [ldl_standard(matrix, row) for matrix, row in zip(matrices, rows, strict=True)]
    orders, doubles = zip(*pairs, strict=True)
    factors = mx.array(matrices, dtype=mx.float32).reshape(shape)
    below = mx.array(doubles).reshape(*shape[:-2], 1, n) * mx.eye(n, k=-1)
    lower = mx.tril(factors, -1) * (1 - below) + mx.eye(n)
    offset = factors * below
    middle = factors * mx.eye(n) + offset + offset.swapaxes(-1, -2)
    order = mx.array(orders).reshape(*shape[:-2], n)
    permutation = (order[..., None] == mx.arange(n)).astype(mx.float32)  # P.T @ A @ P = L @ D @ L.T
    y = solve(middle, solve_triangular(lower, permutation @ b))
    y = solve_triangular(lower.swapaxes(-1, -2), y, upper=True)
    return permutation.swapaxes(-1, -2) @ y
