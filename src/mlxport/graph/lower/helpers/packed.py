"""Rows of padded batches within the lengths of their sequences, in the order of torch's packed sequences."""

from __future__ import annotations

import mlx.core as mx

from mlxport.graph.lower.helpers.indexing import flat_nonzero


def within(lengths: mx.array, length: int, by_length: bool) -> tuple[mx.array, mx.array]:
    """The order of the sequences, and for each step [length, B] which of them, so ordered, have it."""
    order = mx.argsort(-lengths) if by_length else mx.arange(lengths.size)
    return order, mx.arange(length)[:, None] < lengths[order]


def packed_rows(x: mx.array, lengths: mx.array, batch_first: bool = False, by_length: bool = False) -> mx.array:
    """The rows of a padded batch within the lengths, step by step; waits for the lengths."""
    x = x.swapaxes(0, 1) if batch_first else x
    order, mask = within(lengths, x.shape[0], by_length)
    return x[:, order].flatten(0, 1)[flat_nonzero(mask)]


def padded_rows(
    rows: mx.array, lengths: mx.array, length: int, batch_first: bool = False, by_length: bool = False
) -> mx.array:
    """The padded batch of which ``rows`` are the rows within the lengths, zeros elsewhere."""
    order, mask = within(lengths, length, by_length)
    places = mx.maximum(mx.cumsum(mask.flatten().astype(mx.int32)) - 1, 0).reshape(mask.shape)
    mask = mask.reshape(*mask.shape, *[1] * (rows.ndim - 1))
    x = mx.where(mask, rows[places], mx.zeros((), dtype=rows.dtype))[:, mx.argsort(order)]
    return x.swapaxes(0, 1) if batch_first else x
