"""Attention and the softmax variants that belong to it."""

from __future__ import annotations

import math
from typing import Any

from torch.fx import Node

from mlxport.graph.lower import fused_ops as targets
from mlxport.graph.lower.expr import Expr, mx, source
from mlxport.graph.lower.helpers import attention as helper
from mlxport.graph.lower.mask_rows import every_row_sees
from mlxport.graph.lower.registry import call, fused, op, refuse


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a == b


@op("aten.scaled_dot_product_attention.default")
def scaled_dot_product_attention(
    query: Expr,
    key: Expr,
    value: Expr,
    attn_mask: Expr | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: Any = None,
    enable_gqa: bool = False,
    node: Node | None = None,
) -> Expr:
    """``mx.fast.scaled_dot_product_attention``; queries that may see no key give zeros, as in torch."""
    refuse(dropout_p > 0, "dropout: the result is random")
    if scale is None:
        width = query.shape[-1]
        fixed = isinstance(width, int)
        scale = width**-0.5 if not fixed else 1 / math.sqrt(width) if width else 1.0
    mask: Any = attn_mask
    if attn_mask is not None and attn_mask.dtype not in (mx.bool_, query.dtype):
        mask = attn_mask.astype(query.dtype)
    sees = is_causal or (node is not None and every_row_sees(_mask_node(node)))
    if is_causal:
        lengths = query.shape[-2], key.shape[-2]
        square = _same(*lengths) or _square(node)
        mask = "causal" if square else mx.tri(*lengths, dtype=mx.bool_)  # torch aligns to the first key
    ndims = {item.ndim for item in (query, key, value)}
    leads = {tuple(item.value.shape[:-3]) for item in (query, key, value)}
    heads = key.value.shape[-3:-2] == value.value.shape[-3:-2]
    if ndims == {4} and len(leads) == 1 and heads:
        return _fast(query, key, value, mask, scale, sees)
    if ndims == {3} and heads and (attn_mask is None or attn_mask.ndim < 4):
        return _fast(query[None], key[None], value[None], mask, scale, sees)[0]
    options = {} if mask is None else {"mask": mask}
    return call(helper.attention_any_rank, query, key, value, scale, **options)


def _square(node: Node | None) -> bool:
    """Whether there are surely as many queries as keys."""
    if node is None:
        return False
    rows, columns = (item.meta["val"].shape[-2] for item in node.args[:2])
    return not isinstance(rows, int) and not isinstance(columns, int) and bool(rows.node.expr == columns.node.expr)


def _mask_node(node: Node) -> object:
    return node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")


def _fast(query: Expr, key: Expr, value: Expr, mask: Any, scale: Any, sees: bool) -> Expr:
    """``sees``: every query is known to see a key, so that no row needs torch's zeros."""
    if mask is None:
        return mx.fast.scaled_dot_product_attention(query, key, value, scale=scale)
    if sees or isinstance(mask, str):
        return mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=mask)
    return call(helper.masked_attention, query, key, value, scale, mask)


@fused(targets.attention)
def attention(
    query: Expr, key: Expr, value: Expr, mask: Any = None, scale: float = 1.0, sinks: Expr | None = None
) -> Expr:
    """``mx.fast.scaled_dot_product_attention``, its mask taken as it is."""
    if isinstance(mask, Expr) and mask.dtype not in (mx.bool_, query.dtype):
        mask = mask.astype(query.dtype)
    added = 4 - query.ndim
    for _ in range(added):
        query, key, value = query[None], key[None], value[None]
    options: dict[str, Any] = {"scale": scale} if mask is None else {"scale": scale, "mask": mask}
    if sinks is not None:
        options["sinks"] = sinks if sinks.dtype == query.dtype else sinks.astype(query.dtype)
    result = mx.fast.scaled_dot_product_attention(query, key, value, **options)
    for _ in range(added):
        result = result[0]
    return result


@fused(targets.rotary)
def rotary(
    x: Expr,
    dims: int,
    traditional: bool,
    base: float | None,
    scale: float,
    offset: Any,
    freqs: Expr | None = None,
) -> Expr:
    """``mx.fast.rope``."""
    options = {} if freqs is None else {"freqs": freqs}
    return mx.fast.rope(x, dims, traditional=traditional, base=base, scale=scale, offset=offset, **options)


@fused(targets.causal)
def causal(rows: Any, columns: Any) -> Expr:
    """``mx.tri``."""
    if source(rows) == source(columns):
        return mx.tri(rows, dtype=mx.bool_)
    return mx.tri(rows, columns, columns - rows, dtype=mx.bool_)


@fused(targets.sliding_window)
def sliding_window(rows: Any, window: int, columns: Any = None) -> Expr:
    """Truth values that show each query its key and those before it, ``window`` in all."""
    if columns is None or source(rows) == source(columns):
        return call(helper.sliding_window_mask, rows, window)
    return call(helper.sliding_window_mask, rows, window, columns)


@op("aten._safe_softmax.default")
def safe_softmax(self: Expr, dim: int, dtype: Any = None) -> Expr:
    """``softmax`` with zeros where all of a row is minus infinity."""
    return call(helper.safe_softmax, self if dtype is None else self.astype(dtype), dim)


@op("aten._softmax_backward_data.default")
def softmax_backward_data(grad_output: Expr, output: Expr, dim: int, input_dtype: Any) -> Expr:
    """``output * (grad - sum(grad * output))``."""
    return output * (grad_output - (grad_output * output).sum(axis=dim, keepdims=True))
