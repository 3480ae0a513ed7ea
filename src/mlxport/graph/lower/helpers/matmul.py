"""Products of matrices and vectors."""

from __future__ import annotations

import mlx.core as mx


def integer_matmul(a: mx.array, b: mx.array) -> mx.array:
    """``a @ b`` of integers by products and sums: MLX multiplies float matrices only."""
    left, right = a.astype(mx.int64), b.astype(mx.int64)
    left = left[None] if a.ndim == 1 else left
    right = right[:, None] if b.ndim == 1 else right
    result = (left[..., :, :, None] * right[..., None, :, :]).sum(axis=-2)
    if a.ndim == 1:
        result = result.squeeze(-2)
    return (result.squeeze(-1) if b.ndim == 1 else result).astype(a.dtype)


def grouped_mm(x, weight, ends):
    """Rows of ``x`` up to ``ends[0]`` times ``weight[0]``, those up to ``ends[1]`` times ``weight[1]`` and so on."""
    groups = (mx.arange(x.shape[0])[:, None] >= ends).sum(axis=1)
    return mx.gather_mm(x[:, None], weight, rhs_indices=groups, sorted_indices=True)[:, 0]
