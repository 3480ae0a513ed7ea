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
