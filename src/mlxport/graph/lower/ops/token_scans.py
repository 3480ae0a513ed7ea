"""States of modules that compute all tokens at once, a row each: calls of helpers, which read and keep them."""

from __future__ import annotations

from typing import Any

import mlx.core as _mx

from mlxport.graph.lower import token_ops
from mlxport.graph.lower.expr import Expr
from mlxport.graph.lower.helpers import token_scans as helper
from mlxport.graph.lower.registry import fused
from mlxport.graph.lower.registry import helper as registered_helper


@fused(token_ops.linear_states)
def linear_states(decay: Expr, new: Expr, cache: Expr, slot: int, mask: Expr, length: Any) -> Expr:
    """Gives the states before and after each token."""
    shadow = _mx.zeros(new.value.shape, new.dtype)
    return registered_helper(helper.linear_states).called([shadow] * 2, decay, new, cache, slot, mask, length)


@fused(token_ops.largest_states)
def largest_states(added: Expr, new: Expr, cache: Expr, slot: int, mask: Expr, length: Any) -> Expr:
    """Gives the states before and after each token."""
    shadow = _mx.zeros(new.value.shape, new.dtype)
    return registered_helper(helper.largest_states).called([shadow] * 2, added, new, cache, slot, mask, length)


@fused(token_ops.past_windows)
def past_windows(x: Expr, width: int, cache: Expr, slot: int, mask: Expr, length: Any) -> Expr:
    """``past_windows(x, 3, cache, 0, mask, L)``."""
    rows, channels = x.value.shape
    shadow = _mx.zeros((rows, width + 1, channels), x.dtype)
    return registered_helper(helper.past_windows).called(shadow, x, width, cache, slot, mask, length)


@fused(token_ops.linear_attention)
def linear_attention(q: Expr, k: Expr, v: Expr, decay: Expr, cache: Expr, slot: int, mask: Expr, length: Any) -> Expr:
    """``linear_attention(q, k, v, decay, cache, 0, mask, L)``."""
    shadow = _mx.zeros((*q.value.shape[:2], v.value.shape[-1]), v.dtype)
    return registered_helper(helper.linear_attention).called(shadow, q, k, v, decay, cache, slot, mask, length)
