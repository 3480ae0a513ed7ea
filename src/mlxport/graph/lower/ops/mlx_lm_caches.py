"""mlx-lm's caches, and attention to what they hold."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import mlx.core as _mx

from mlxport.graph.lower import cache_ops as targets
from mlxport.graph.lower.expr import Expr, mx, to_ast
from mlxport.graph.lower.helpers import mlx_lm_caches as helper
from mlxport.graph.lower.registry import call, fused
from mlxport.graph.lower.registry import helper as registered_helper

_PAST = 9  # tokens that caches hold in shadows


def _called(function: ast.expr, value: Any, *args: Any, **keywords: Any) -> Expr:
    """A call whose shadow is ``value``: mlx-lm's own functions are not run while lowering."""
    given = [ast.keyword(name, to_ast(item)) for name, item in keywords.items()]
    return Expr(ast.Call(function, [to_ast(item) for item in args], given), value, dynamic=True)


@fused(targets.entry)
def entry(caches: Expr, index: int, part: int | None = None) -> Expr:
    """``cache[0]``, ``cache[0][1]``."""
    places = [index] if part is None else [index, part]
    node = caches.node
    for place in places:
        node = ast.Subscript(node, ast.Constant(place))
    return Expr(node, caches.value)


@fused(targets.kept)
def kept(cache: Expr, index: int, sizes: Sequence[int], dtype: _mx.Dtype) -> Expr:
    """``encoded[0]``."""
    return Expr(ast.Subscript(cache.node, ast.Constant(index)), _mx.zeros(sizes, dtype), dynamic=True)


@fused(targets.offset)
def offset(caches: Expr, index: int, part: int | None = None, given: bool = False) -> Expr:
    """``cache[0].offset``, 0 without a cache."""
    cache = entry(caches, index, part)
    if given:
        return Expr(ast.Attribute(cache.node, "offset"), _mx.array(_PAST, _mx.int64))
    known = ast.Compare(cache.node, [ast.IsNot()], [ast.Constant(None)])
    read = ast.IfExp(known, ast.Attribute(cache.node, "offset"), ast.Constant(0))
    return Expr(read, _mx.array(_PAST, _mx.int64))


@fused(targets.update_and_fetch)
def update_and_fetch(cache: Expr, keys: Expr, values: Expr) -> Expr:
    """``cache.update_and_fetch(keys, values)``; ``write.generating`` adds what holds without a cache."""
    shapes = [(*item.value.shape[:2], item.value.shape[2] + _PAST, item.value.shape[3]) for item in (keys, values)]
    value = [_mx.zeros(shape, item.dtype) for shape, item in zip(shapes, (keys, values), strict=True)]
    return _called(ast.Attribute(cache.node, "update_and_fetch"), value, keys, values)


@fused(targets.fetch_index)
def fetch_index(cache: Expr, keys: Expr) -> Expr:
    """``fetch_index(index_cache, k)``."""
    batch, length, width = keys.value.shape
    shadow = _mx.zeros((batch, length + _PAST, width), keys.dtype)
    return registered_helper(helper.fetch_index).called(shadow, cache, keys)


@fused(targets.attention_mask)
def attention_mask(like: Expr, cache: Expr, window: int | None = None, array: bool = False) -> Expr:
    """mlx-lm's ``create_attention_mask``."""
    options: dict[str, Any] = {} if window is None else {"window_size": window}
    if array:
        options["return_array"] = True
    shadow = _mx.zeros((1, 1), _mx.bool_)  # it may be None: nothing is computed of its sizes
    return _called(ast.Name("create_attention_mask"), shadow, like, cache, **options)


@fused(targets.chunk_mask)
def chunk_mask(like: Expr, caches: Expr, index: int, chunk: int) -> Expr:
    """``chunk_mask(input_ids, cache, 0, 8192)``."""
    return registered_helper(helper.chunk_mask).called(_mx.zeros((1, 1), _mx.bool_), like, caches, index, chunk)


@fused(targets.attend)
def attend(
    query: Expr, key: Expr, value: Expr, cache: Expr, mask: Any, scale: float = 1.0, sinks: Expr | None = None
) -> Expr:
    """mlx-lm's ``scaled_dot_product_attention``, which knows quantized caches."""
    if isinstance(mask, Expr) and mask.dtype not in (_mx.bool_, query.dtype):
        mask = mask.astype(query.dtype)
    options: dict[str, Any] = {"cache": cache, "scale": scale, "mask": mask}
    if sinks is not None:
        options["sinks"] = sinks if sinks.dtype == query.dtype else sinks.astype(query.dtype)
    shadow = _mx.zeros((*query.value.shape[:3], value.value.shape[-1]), query.dtype)
    return _called(ast.Name("scaled_dot_product_attention"), shadow, query, key, value, **options)


@fused(targets.latent_attention)
def latent_attention(
    query: Expr,
    query_pe: Expr,
    latents: Expr,
    key_pe: Expr,
    embed_q: Expr,
    unembed_out: Expr,
    cache: Expr,
    mask: Any,
    scale: float = 1.0,
    sinks: Expr | None = None,
) -> Expr:
    """``latent_attention(q_nope, q_pe, kv_latent, k_pe, self.embed_q, self.unembed_out, cache, mask, scale=0.125)``."""
    options: dict[str, Any] = {"scale": scale}
    if sinks is not None:
        options["sinks"] = sinks if sinks.dtype == query.dtype else sinks.astype(query.dtype)
    shadow = _mx.zeros((*query.value.shape[:3], unembed_out.value.shape[1]), query.dtype)
    given = (query, query_pe, latents, key_pe, embed_q, unembed_out, cache, mask)
    return registered_helper(helper.latent_attention).called(shadow, *given, **options)


@fused(targets.positions)
def positions(like: Expr, offset: Any, start: int = 0) -> Expr:
    """``positions_after(input_ids, offset)``."""
    given = {"start": start} if start else {}
    shadow = mx.zeros((1, like.value.shape[1]), mx.int64).value
    return registered_helper(helper.positions_after).called(shadow, like, offset, **given)


@fused(targets.row_offset)
def row_offset(offset: Expr) -> Expr:
    """``row_offset(offset)``."""
    return registered_helper(helper.row_offset).called(_mx.full((1, 1), _PAST, _mx.int64), offset)


@fused(targets.same_positions)
def same_positions(positions: Expr) -> Expr:
    """``same_positions(positions)``."""
    return call(helper.same_positions, positions)


@fused(targets.biased_mask)
def biased_mask(bias: Expr, visible: Expr) -> Expr:
    """``masked_scores(bias, mask)``."""
    return registered_helper(helper.masked_scores).called(bias.value, bias, visible)


@fused(targets.masked_scores)
def masked_scores(scores: Expr, visible: Expr) -> Expr:
    """``masked_scores(scores, mask)``."""
    return registered_helper(helper.masked_scores).called(scores.value, scores, visible)


@fused(targets.mask_of_rows)
def mask_of_rows(visible: Expr) -> Expr:
    """``mask_of_rows(mask)``."""
    return registered_helper(helper.mask_of_rows).called(visible.value, visible)


@fused(targets.chosen_mask)
def chosen_mask(places: Expr, keys: Expr, visible: Expr) -> Expr:
    """``chosen_mask(topk_indices, k.shape[2], mask)``."""
    batch, length = places.value.shape[:2]
    shadow = _mx.zeros((batch, 1, length, keys.value), _mx.bool_)
    return registered_helper(helper.chosen_mask).called(shadow, places, keys, visible)


@fused(targets.swiglu)
def swiglu(gate: Expr, x: Expr) -> Expr:
    """mlx-lm's ``swiglu``."""
    return _called(ast.Name("swiglu"), x.value, gate, x)
