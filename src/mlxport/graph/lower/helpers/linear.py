"""Linear maps and embeddings that take more than a line of MLX."""

from __future__ import annotations

import mlx.core as mx


def integer_linear(x, weight, bias=None):
    """Compute x @ weight.T + bias in integers, which MLX's matmul does not take."""
    y = (mx.expand_dims(x, -2) * weight).sum(axis=-1) if weight.ndim == 2 else (x * weight).sum(axis=-1)
    return y.astype(x.dtype) if bias is None else y.astype(x.dtype) + bias


def bilinear(x1, x2, weight):
    """x1 @ weight[o] @ x2 for every o, over all leading axes."""
    left, right = x1.reshape(-1, x1.shape[-1]), x2.reshape(-1, x2.shape[-1])
    products = mx.einsum("ni,oij->noj", left, weight)  # (rows, outputs, features of x2)
    return (products @ right[:, :, None]).reshape(*x1.shape[:-1], weight.shape[0])


def integer_bilinear(x1, x2, weight):
    """Compute x1 @ weight[o] @ x2 for every o in integers, which MLX's matmul does not take."""
    products = x1[..., None, :, None] * weight.astype(mx.int64) * x2[..., None, None, :]
    return products.sum(axis=(-2, -1)).astype(x1.dtype)


def embedding_renorm(weight, indices, max_norm, norm_type=2.0):
    """Return weight with the rows that indices name scaled down to max_norm where their norm exceeds it."""
    norms = mx.linalg.norm(weight, ord=norm_type, axis=1, keepdims=True)
    named = mx.zeros((weight.shape[0], 1), dtype=mx.bool_)
    named[indices.reshape(-1)] = True
    return mx.where(named & (norms > max_norm), weight * (max_norm / (norms + 1e-7)), weight)


def bag_of_each(indices, offsets):
    """For each index the number of its bag: the last that starts at or before it."""
    return (mx.arange(indices.shape[0])[:, None] >= offsets).sum(axis=1) - 1


def bag_sizes(indices, offsets, padding_idx=None):
    """How many indices each bag has, those that are padding not counted."""
    counted = mx.ones(indices.shape, dtype=mx.int32)
    counted = counted if padding_idx is None else (indices != padding_idx).astype(mx.int32)
    return mx.zeros(offsets.shape, dtype=mx.int32).at[bag_of_each(indices, offsets)].add(counted)


def embedding_bag(weight, indices, offsets, mode="sum", weights=None, include_last_offset=False, padding_idx=None):
    """Sum, mean or max of the rows weight[indices] in each bag, from its offset on. An empty bag gives zeros."""
    rows = weight[indices]
    if weights is not None:
        rows = rows * weights[:, None]
    bag, counts = bag_of_each(indices, offsets), bag_sizes(indices, offsets, padding_idx)[:, None]
    shape = (offsets.shape[0], weight.shape[1])
    counted = mx.ones(indices.shape, dtype=mx.bool_) if padding_idx is None else indices != padding_idx
    if mode == "max":
        rows = mx.where(counted[:, None], rows, -mx.inf)
        largest = mx.full(shape, -mx.inf, dtype=weight.dtype).at[bag].maximum(rows)
        bags = mx.where(counts > 0, largest, 0)
    else:
        bags = mx.zeros(shape, dtype=weight.dtype).at[bag].add(mx.where(counted[:, None], rows, 0))
        bags = bags / mx.maximum(counts, 1) if mode == "mean" else bags
    return bags[:-1] if include_last_offset else bags  # the last offset is where the last bag ends


def largest_in_bags(weight, indices, offsets, padding_idx=None):
    """For each bag and feature the index whose row has the largest number, the first of several; 0 for no index."""
    bag = bag_of_each(indices, offsets)
    largest = embedding_bag(weight, indices, offsets, "max", padding_idx=padding_idx)
    hits = weight[indices] == largest[bag]
    hits = hits if padding_idx is None else hits & (indices != padding_idx)[:, None]
    count = indices.shape[0]
    places = mx.where(hits, mx.arange(count)[:, None], count)
    first = mx.full(largest.shape, count, dtype=places.dtype).at[bag].minimum(places)
    return mx.where(first < count, indices[mx.minimum(first, count - 1)], 0)
