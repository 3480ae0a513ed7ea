"""Scans and convolutions on the states that mlx-lm's caches keep: calls of helpers, which read and keep them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as _mx

from mlxport.graph.lower import cache_ops as targets
from mlxport.graph.lower import token_ops
from mlxport.graph.lower.expr import Expr, mx, value_of
from mlxport.graph.lower.helpers import stored_states as helper
from mlxport.graph.lower.registry import fused
from mlxport.graph.lower.registry import helper as registered_helper


def _called(function: Callable[..., Any], shape: tuple[int, ...], dtype: Any, *args: Any) -> Expr:
    """A call of a helper; it is not run while lowering, since it writes into a cache."""
    return registered_helper(function).called(_mx.zeros(shape, dtype), *args)


@fused(targets.state_mask)
def state_mask(like: Expr, cache: Expr) -> Expr:
    """mlx-lm's ``create_ssm_mask``."""
    shadow = _mx.zeros(like.value.shape, _mx.bool_)  # it may be None: nothing is computed of it but in helpers
    return Expr(ast.Call(ast.Name("create_ssm_mask"), [like.node, cache.node], []), shadow, dynamic=True)


@fused(targets.with_past)
def with_past(x: Expr, width: int, cache: Expr, slot: int, mask: Expr) -> Expr:
    """``with_past(x, 3, cache, 0, mask)``."""
    batch, length, channels = x.value.shape
    return _called(helper.with_past, (batch, length + width, channels), x.dtype, x, width, cache, slot, mask)


@fused(targets.selective_scan)
def selective_scan(x: Expr, dt: Expr, A: Expr, B: Expr, C: Expr, cache: Expr, slot: int, mask: Expr) -> Expr:
    """``selective_scan(x, dt, A, B, C, cache, 1, mask)``."""
    return _called(helper.selective_scan, x.value.shape, x.dtype, x, dt, A, B, C, cache, slot, mask)


@fused(targets.state_space)
def state_space(
    x: Expr,
    dt: Expr,
    A_log: Expr,
    B: Expr,
    C: Expr,
    D: Expr,
    dt_bias: Expr,
    limits: tuple[float, float],
    cache: Expr,
    slot: int,
    mask: Expr,
) -> Expr:
    """``state_space(x, dt, A_log, B, C, D, dt_bias, limits, cache, 1, mask)``."""
    low, high = (mx.inf if limit == float("inf") else limit for limit in limits)
    given = (x, dt, A_log, B, C, D, dt_bias, (low, high), cache, slot, mask)
    return _called(helper.state_space, x.value.shape, x.dtype, *given)


@fused(targets.gated_delta)
def gated_delta(q: Expr, k: Expr, v: Expr, g: Expr, beta: Expr, cache: Expr, slot: int, mask: Expr) -> Expr:
    """``gated_delta(q, k, v, g, beta, cache, 1, mask)``."""
    return _called(helper.gated_delta, v.value.shape, q.dtype, q, k, v, g, beta, cache, slot, mask)


@fused(token_ops.wkv)
def wkv(decay: Expr, first: Expr, k: Expr, v: Expr, cache: Expr, slot: int, mask: Expr) -> Expr:
    """``wkv(decay, first, k, v, cache, 0, mask)``."""
    return _called(helper.wkv, k.value.shape, k.dtype, decay, first, k, v, cache, slot, mask)


@fused(token_ops.one_token)
def one_token(x: Expr, axis: int) -> Expr:
    """Nothing: whoever calls the module gives it one token."""
    return Expr(x.node, _mx.take(x.value, _mx.array([0]), axis=axis), dynamic=True)


@fused(token_ops.all_tokens)
def all_tokens(x: Expr, axis: int, length: Any) -> Expr:
    """Nothing: whoever calls the module puts the tokens together."""
    return Expr(x.node, _mx.repeat(x.value, int(value_of(length)), axis=axis), dynamic=True)


@fused(token_ops.recall)
def recall(cache: Expr, slot: int, sizes: Sequence[Any], dtype: _mx.Dtype) -> Expr:
    """``recall(cache, 0, (B, 8, 64), mx.float32)``."""
    numbers = [int(value_of(size)) for size in sizes]
    return registered_helper(helper.recall).called(_mx.zeros(numbers, dtype), cache, slot, tuple(sizes), dtype)


@fused(token_ops.keep_token)
def keep_token(cache: Expr, slot: int, before: Expr, state: Expr, mask: Expr) -> Expr:
    """``keep_token(cache, 0, before, state, mask)``."""
    shadow = _mx.zeros((), _mx.bool_)  # it gives nothing
    return registered_helper(helper.keep_token).called(shadow, cache, slot, before, state, mask)


EACH_TOKEN = registered_helper(helper.each_token)
