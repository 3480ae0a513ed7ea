"""Attention as torch defines it, around mx.fast.scaled_dot_product_attention."""

from __future__ import annotations

import mlx.core as mx


def masked_attention(q, k, v, scale, mask):
    """Attention under a mask, boolean or added; a query that may see no key gives zeros."""
    out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    visible = mask if mask.dtype == mx.bool_ else mask > -mx.inf
    return mx.where(visible.any(axis=-1, keepdims=True), out, 0)


def attention_any_rank(q, k, v, scale, mask=None):
    """Attention over the last two axes; all axes before them broadcast."""
    lead = mx.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    q, k, v = (mx.broadcast_to(x, (*lead, *x.shape[-2:])).reshape(1, -1, *x.shape[-2:]) for x in (q, k, v))
    if mask is None or isinstance(mask, str):
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    else:
        mask = mx.broadcast_to(mask, (*lead, q.shape[-2], k.shape[-2])).reshape(1, -1, q.shape[-2], k.shape[-2])
        out = masked_attention(q, k, v, scale, mask)
    return out.reshape(*lead, *out.shape[-2:])


def safe_softmax(x, axis):
    """softmax, and zeros where every element along the axis is minus infinity."""
    return mx.where((x == -mx.inf).all(axis=axis, keepdims=True), 0, mx.softmax(x, axis=axis))


def sliding_window_mask(rows, window, columns=None):
    """True where a query sees a key: its own and those before it, ``window`` in all; the last two belong together."""
    columns = rows if columns is None else columns
    back = mx.arange(columns - rows, columns)[:, None] - mx.arange(columns)
    return (back >= 0) & (back < window)
