"""What new tokens see of all: masks that follow from sizes alone -> what the caches say, as mlx-lm's models have it."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.lower import cache_ops
from mlxport.graph.lower.fused_ops import attention
from mlxport.graph.lower.traits import traits_of
from mlxport.graph.rewrite.caches.cached_step import CachedStep, CacheKind, NotCached
from mlxport.graph.rewrite.caches.index_keys import chosen_keys
from mlxport.graph.rewrite.caches.keys_values import counts_all, layer_of, number_of_keys
from mlxport.graph.rewrite.caches.latents import attend_to_latents, find_latents
from mlxport.graph.rewrite.caches.visible_keys import is_lowest, visible_keys
from mlxport.graph.rewrite.fuse.values import symbols
from mlxport.graph.rewrite.graph_queries import (
    Editor,
    ancestors,
    is_cast,
    is_float,
    kind,
    ndim,
    same_size,
    shape,
    where,
)

__all__ = ["attend_to_caches"]

_aten = torch.ops.aten


class _Masks:
    """The masks that layers share: one for each window, as an argument of attention and as truth values."""

    def __init__(self, step: CachedStep) -> None:
        self._step = step
        self._made: dict[tuple[CacheKind, bool], Node] = {}
        self._seen: dict[int, CacheKind] = {}
        self._learned: dict[Node, Node] = {}
        self._rows: dict[Node, Node] = {}

    def of(self, layer: int, seen: CacheKind, array: bool = False) -> Node:
        """The mask of all layers that see as much."""
        known = self._seen.setdefault(layer, seen)
        if known != seen:
            ways = f"{known.sees} and {seen.sees}"
            raise NotCached(f"layer {layer} has attentions that see {ways}, where mlx-lm keeps one cache for a layer")
        kept = self._step.kinds.get(layer, CacheKind())
        if kept.indexes and seen != CacheKind():
            raise NotCached(f"layer {layer} has an index of more keys than it keeps: attention sees {seen.sees}")
        self._step.kinds[layer] = replace(kept, window=seen.window, chunk=seen.chunk)
        if (seen, array) not in self._made:
            self._made[seen, array] = self._chunks(layer, seen.chunk) if seen.chunk else self._all(layer, seen, array)
        return self._made[seen, array]

    def of_rows(self, mask: Node) -> Node:
        """A mask of all layers for scores that have no axis of heads."""
        if mask not in self._rows:
            value = mask.meta["val"]
            self._rows[mask] = self._step.shared(cache_ops.mask_of_rows, mask, val=value, argument="row_mask")
        return self._rows[mask]

    def learned(self, bias: Node, edit: Editor, update: Node) -> Node:
        """A bias by a table of distances, computed in the first layer that has it, for all."""
        if bias not in self._learned:
            keys = next(user for user in update.users if user.args[1] == 0)
            if bias < keys:
                raise NotCached(f"{where(bias)} computes a bias of positions before there are keys")
            self._learned[bias] = _in_layer(self._step, edit, bias, keys)
        return self._learned[bias]

    def _all(self, layer: int, seen: CacheKind, array: bool) -> Node:
        step, window = self._step, seen.window
        more: tuple[Any, ...] = (window, True) if array else (window,) if window else ()
        return step.shared(
            cache_ops.attention_mask, step.ids, step.entry(layer), *more,
            val=step.fake((1, 1), torch.bool), argument="mask", variable="window_mask" if window else "mask",
        )  # fmt: skip

    def _chunks(self, layer: int, chunk: int) -> Node:
        step = self._step
        return step.shared(
            cache_ops.chunk_mask, step.ids, step.caches, layer, chunk,
            val=step.fake((1, 1), torch.bool), argument="mask", variable="chunk_mask",
        )  # fmt: skip


def attend_to_caches(step: CachedStep, fetched: Mapping[int, Node]) -> int:
    """Let every attention ask the caches for its mask; gives how many there are.

    Raises:
        NotCached: An attention to what no cache holds, or a mask whose form is not known.
    """
    masks, count = _Masks(step), 0
    for node in list(step.captured.graph.nodes):
        hidden = _hidden(step, node)
        if hidden is not None:
            _scores(step, masks, fetched, node, hidden)
            count += 1
    for node in list(step.captured.graph.nodes):
        if node.target is attention or kind(node) == "scaled_dot_product_attention":
            if step.source is not None and layer_of(fetched, _arguments(node)[1:3]) is None:
                continue  # within an encoder, or to its output
            _attention(step, masks, fetched, node)
            count += 1
    step.captured.graph.eliminate_dead_code()
    return count


def _attention(step: CachedStep, masks: _Masks, fetched: Mapping[int, Node], node: Node) -> None:
    layer = _layer(fetched, _arguments(node)[1:3], node)
    if ndim(node) == 3:
        node = _with_heads(step, fetched[layer], node)
    query, key, value, mask, scale, *sinks = _arguments(node)
    edit = Editor(step.captured, node)
    cache = step.cache(layer)
    seen, bias = CacheKind(), None
    masked = isinstance(mask, Node) and _is_masked(mask)
    chosen, beside = chosen_keys(step, mask)
    if not masked:
        seen, bias = visible_keys(step, beside, (shape(query)[-2], shape(key)[-2]), node)
    latents = None if masked or bias is not None else find_latents(step, query, key, value)
    if masked:
        given = mask
    elif chosen is not None:
        keys = number_of_keys(step, fetched[layer], shape(mask)[-1])
        shown = masks.of(layer, seen, array=True)
        given = edit.call(cache_ops.chosen_mask, chosen, keys, shown, val=step.fake(shape(mask), torch.bool))
        given.meta["stack_trace"] = mask.meta.get("stack_trace", "")
    elif bias is None:
        given = masks.of(layer, seen, array=latents is not None)
    else:
        bias = _in_layer(step, edit, bias, key)
        given = edit.call(cache_ops.biased_mask, bias, masks.of(layer, seen, array=True), val=bias.meta["val"])
    if latents is not None:
        more = (cache, given, scale, *sinks)
        edit.replace(attend_to_latents(step, edit, latents, query, more, node.meta["val"]))
        return
    edit.replace(edit.call(cache_ops.attend, query, key, value, cache, given, scale, *sinks, val=node.meta["val"]))


def _with_heads(step: CachedStep, update: Node, node: Node) -> Node:
    """An attention of [batch * heads, length, width] as one of [batch, heads, length, width], as the cache keeps keys.

    Raises:
        NotCached: Its mask has those axes, too.
    """
    query, key, value, mask, scale, *sinks = _arguments(node)
    if isinstance(mask, Node) and ndim(mask) > 2:
        raise NotCached(f"the attention of {where(node)} has a mask for each row and head, in one axis")
    edit = Editor(step.captured, node)
    batch, heads = edit.sizes(next(user for user in update.users if user.args[1] == 0), (0, 1))
    parts = [edit.view(item, [batch, heads, *edit.sizes(item, (1, 2))]) for item in (query, key, value)]
    result = step.fake((*shape(parts[0])[:3], shape(value)[-1]), node.meta["val"].dtype)
    made = edit.call(attention, *parts, mask, scale, *sinks, val=result)
    sizes = [-1, edit.size(parts[0], 2), *shape(value)[-1:]]
    edit.replace(edit.call(_aten.reshape.default, made, sizes, val=node.meta["val"]))
    return made


def _is_masked(mask: Node) -> bool:
    """Whether a mask was put upon what is added to the scores."""
    views: Node = mask
    while traits_of(views).view is not None or is_cast(views):
        views = views.args[0]  # type: ignore[assignment]
    return views.target is cache_ops.masked_scores


def _arguments(node: Node) -> tuple[Any, ...]:
    """Query, key, value, mask, scale, and sinks where there are some."""
    if node.target is attention:
        defaults: tuple[Any, ...] = (None, 1.0)
        return (*node.args, *defaults[len(node.args) - 3 :])
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    width = shape(given["query"])[-1]
    if given.get("dropout_p") or not isinstance(width, int):
        raise NotCached(f"attention of {where(node)}: dropout, or a width that is not fixed")
    mask = "causal" if given.get("is_causal") else given.get("attn_mask")
    scale = given.get("scale")
    return given["query"], given["key"], given["value"], mask, width**-0.5 if scale is None else scale


def _layer(fetched: Mapping[int, Node], nodes: tuple[Node, ...], node: Node) -> int:
    """The layer whose keys and values these are, or are made of."""
    layer = layer_of(fetched, nodes)
    if layer is None:
        raise NotCached(f"the attention of {where(node)} sees keys that no cache holds")
    return layer


def _in_layer(step: CachedStep, edit: Editor, bias: Node, keys: Node) -> Node:
    """``bias`` computed within a layer, where the number of all keys is known: that of those which the cache gave."""
    axis, total = next((axis, size) for axis, size in enumerate(shape(keys)) if counts_all(step, size))
    size = edit.call(_aten.sym_size.int, keys, axis, val=total)
    copies: dict[Node, Node] = {}
    for node in sorted({bias, *ancestors([bias])}):
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt) and value.node.expr in (total.node.expr, step.past):
            new = edit.known_size(shape(step.ids)[1])
            copies[node] = size if value.node.expr != step.past else edit.call(operator.sub, size, new, val=value)
        elif node.op == "call_function" and (step.past in symbols([node]) or copies.keys() & set(node.all_input_nodes)):
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda item: copies.get(item, item))
            copies[node] = edit.call(node.target, *args, val=value, **kwargs)
    return copies.get(bias, bias)


def _reader(fetched: Mapping[int, Node], node: Node) -> int:
    """The layer of the first attention that ``node`` is given to."""
    after, users = {node}, sorted(node.users)
    while users:
        user = users.pop(0)
        if user.target is attention or kind(user) == "scaled_dot_product_attention":
            return _layer(fetched, _arguments(user)[1:3], user)
        if user not in after:
            after.add(user)
            users = sorted({*users, *user.users})
    raise NotCached(f"{where(node)} hides keys that no cache holds")


# Attention that is written out, since something is done to the scores (soft caps), or biases made of values: a mask is
# put upon them.
@dataclass(frozen=True)
class _Hidden:
    """What a static mask hides numbers of: ``shown`` is the truth value that shows one, None for an added mask."""

    mask: Node
    scores: Node
    shown: bool | None


def _hidden(step: CachedStep, node: Node) -> _Hidden | None:
    """The mask that ``node`` puts upon scores of all keys, if it is such."""
    if not is_float(node) or ndim(node) < 3 or not counts_all(step, shape(node)[-1]):
        return None
    found: list[_Hidden] = []
    if kind(node) == "add":
        pairs = (node.args[:2], node.args[1::-1])
        found = [_Hidden(mask, scores, None) for mask, scores in pairs if isinstance(mask, Node) and is_float(mask)]
    elif kind(node) == "where" and is_lowest(step, node.args[2]):
        found = [_Hidden(node.args[0], node.args[1], True)]
    elif kind(node) == "where" and is_lowest(step, node.args[1]):
        found = [_Hidden(node.args[0], node.args[2], False)]
    elif kind(node) == "masked_fill" and is_lowest(step, node.args[2]):
        found = [_Hidden(node.args[1], node.args[0], False)]
    return next((item for item in found if _put_upon(step, item)), None)


def _put_upon(step: CachedStep, found: _Hidden) -> bool:
    if not isinstance(found.scores, Node) or found.scores in step.values.static:
        return False
    return found.mask in step.values.static and step.past in symbols([found.mask]) and ndim(found.mask) >= 2


def _scores(step: CachedStep, masks: _Masks, fetched: Mapping[int, Node], node: Node, hidden: _Hidden) -> None:
    layer, learned = layer_of(fetched, (hidden.scores,)), False
    if layer is None:  # a bias that is made of positions, by a table that was learned
        layer, learned = _reader(fetched, node), True
    lengths = shape(node)[-2], shape(node)[-1]
    seen, bias = visible_keys(step, hidden.mask, lengths, node, hidden.shown)
    edit, scores = Editor(step.captured, node), hidden.scores
    if learned:
        scores = masks.learned(scores, edit, fetched[layer])
    if bias is not None:
        scores = edit.call(_aten.add.Tensor, scores, _in_layer(step, edit, bias, fetched[layer]))
    given = masks.of(layer, seen, array=True)
    if ndim(node) == 3 and same_size(shape(node)[0], shape(step.ids)[0]):
        given = masks.of_rows(given)
    value = scores.meta["val"] if learned else node.meta["val"]  # such a bias is the same for all rows
    edit.replace(edit.call(cache_ops.masked_scores, scores, given, val=value))
