"""Experts that are chosen, and rows for them, sorted by expert or not."""

from __future__ import annotations

import ast

import mlx.core as _mx

from mlxport.graph.lower import expert_ops as targets
from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import experts as helper
from mlxport.graph.lower.registry import fused
from mlxport.graph.lower.registry import helper as registered_helper


@fused(targets.chosen)
def chosen(scores: Expr, k: int, bias: Expr | None = None) -> Expr:
    """``mx.stop_gradient(mx.argpartition(-scores, kth=k - 1, axis=-1)[..., :k])``; ``favoured(scores, bias, k)``."""
    if bias is not None:
        value = _mx.argpartition(-(scores.value + bias.value), kth=k - 1, axis=-1)[..., :k]
        return registered_helper(helper.favoured).called(value, scores, bias, k)
    return mx.stop_gradient(mx.argpartition(-scores, kth=k - 1, axis=-1)[..., :k])


@fused(targets.largest)
def largest(scores: Expr, k: int) -> Expr:
    """``mx.topk(scores, k)``."""
    return mx.topk(scores, k)


@fused(targets.shares)
def shares(x: Expr, least: float = 0.0, scale: float = 1.0) -> Expr:
    """``shares(topk_weights, least=1e-20, scale=2.5)``."""
    given, usual = {"least": least, "scale": scale}, {"least": 0.0, "scale": 1.0}
    options = {name: number for name, number in given.items() if number != usual[name]}
    return registered_helper(helper.shares).called(x.value, x, **options)


@fused(targets.rows_by_expert)
def rows_by_expert(x: Expr, experts: Expr) -> Expr:
    """``rows_by_expert(x, indices)``."""
    rows = x.value[..., None, None, :]
    return registered_helper(helper.rows_by_expert).called([rows, experts.value, _mx.array(0)], x, experts)


@fused(targets.bias_of_experts)
def bias_of_experts(bias: Expr, experts: Expr) -> Expr:
    """``mx.expand_dims(bias[experts], -2)``: the number of axes before is not known."""
    return mx.expand_dims(bias[experts], -2)


@fused(targets.is_sorted)
def is_sorted(order: Expr) -> Expr:
    """``order is not None``."""
    return Expr(ast.Compare(order.node, [ast.IsNot()], [ast.Constant(None)]), _mx.array(True), dynamic=True)


@fused(targets.rows_of_tokens)
def rows_of_tokens(x: Expr, order: Expr, experts: Expr) -> Expr:
    """``rows_of_tokens(x, order, indices)``."""
    value = _mx.zeros((*experts.value.shape, x.value.shape[-1]), x.value.dtype)
    return registered_helper(helper.rows_of_tokens).called(value, x, order, experts)
