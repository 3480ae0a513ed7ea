"""What new tokens see of all: masks that follow from sizes alone -> what the caches say, as mlx-lm's models have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.lower import cache_ops
from mlxport.graph.lower.fused_ops import attention, causal, sliding_window
from mlxport.graph.rewrite.caches.cached_step import CachedStep, CacheKind, NotCached
from mlxport.graph.rewrite.fuse.mask_forms import mask_form
from mlxport.graph.rewrite.fuse.values import CannotEvaluate, symbols
from mlxport.graph.rewrite.graph_queries import Editor, ancestors, is_float, kind, ndim, shape, where

__all__ = ["attend_to_caches"]

_aten = torch.ops.aten
_HIDDEN = -1e4


class _Masks:
    """The masks that layers share: one for each window, as an argument of attention and as truth values."""

    def __init__(self, step: CachedStep) -> None:
        self._step = step
        self._made: dict[tuple[int | None, bool], Node] = {}
        self._windows: dict[int, int | None] = {}

    def of(self, layer: int, window: int | None, array: bool = False) -> Node:
        """The mask of all layers with this window."""
        known = self._windows.setdefault(layer, window)
        if known != window:
            raise NotCached(f"layer {layer} has two windows: {known} and {window}")
        self._step.kinds[layer] = replace(self._step.kinds.get(layer, CacheKind()), window=window)
        if (window, array) not in self._made:
            step = self._step
            more: tuple[Any, ...] = (window, True) if array else (window,) if window else ()
            name = "mask" if window is None else "window_mask"
            self._made[window, array] = step.shared(
                cache_ops.attention_mask, step.ids, step.entry(layer), *more,
                val=step.fake((1, 1), torch.bool), argument="mask", variable=name,
            )  # fmt: skip
        return self._made[window, array]


def attend_to_caches(step: CachedStep, fetched: Mapping[int, Node]) -> int:
    """Let every attention ask the caches for its mask; gives how many there are.

    Raises:
        NotCached: An attention to what no cache holds, or a mask whose form is not known.
    """
    masks, count = _Masks(step), 0
    for node in list(step.captured.graph.nodes):
        if node.target is attention or kind(node) == "scaled_dot_product_attention":
            _attention(step, masks, fetched, node)
            count += 1
    for node in list(step.captured.graph.nodes):
        if kind(node) in ("add", "where") and _hides(step, node):
            _scores(step, masks, fetched, node)
            count += 1
    step.captured.graph.eliminate_dead_code()
    return count


def _attention(step: CachedStep, masks: _Masks, fetched: Mapping[int, Node], node: Node) -> None:
    query, key, value, mask, scale, *sinks = _arguments(node)
    layer = _layer(fetched, (key, value), node)
    window, bias = _form(step, mask, (shape(query)[-2], shape(key)[-2]), node)
    edit = Editor(step.captured, node)
    cache = step.cache(layer)
    if bias is None:
        given = masks.of(layer, window)
    else:
        bias = _in_layer(step, edit, bias, key)
        given = edit.call(cache_ops.biased_mask, bias, masks.of(layer, window, array=True), val=bias.meta["val"])
    made = edit.call(cache_ops.attend, query, key, value, cache, given, scale, *sinks, val=node.meta["val"])
    edit.replace(made)


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
    """The layer whose keys and values these are, or are made of (latents that become keys): the nearest update."""
    layers = {update: number for number, update in fetched.items()}
    seen: set[Node] = set()
    level = list(nodes)
    while level:
        for item in level:
            if item in layers:
                return layers[item]
        seen.update(level)
        level = list({other for item in level for other in item.all_input_nodes if other not in seen})
    raise NotCached(f"the attention of {where(node)} sees keys that no cache holds")


def _form(step: CachedStep, mask: Any, lengths: tuple[Any, Any], node: Node) -> tuple[int | None, Node | None]:
    """The window of a mask, None for all tokens before; and what is added to the scores beside it."""
    if mask is None:
        raise NotCached(f"the attention of {where(node)} hides nothing, later tokens neither")
    if mask == "causal" or mask.target is causal:
        return None, None
    if mask.target is sliding_window:
        return mask.args[1], None
    step.values.learn(mask)
    visible = True if mask.meta["val"].dtype is torch.bool else None
    found = mask_form(mask, step.values, lengths, visible)
    if found == "causal" or isinstance(found, int):
        return (found if isinstance(found, int) else None), None
    if visible is None and (parts := _bias(step, mask, lengths)) is not None:
        return parts
    raise NotCached(f"the mask of {where(node)} has a form that mlx-lm's caches do not have")


def _bias(step: CachedStep, mask: Node, lengths: tuple[Any, Any]) -> tuple[int | None, Node] | None:
    """The window of an added mask, and the node among those that it is made of that is added where a key is seen."""
    for node in [item for item in sorted(ancestors([mask])) if is_float(item) and item in step.values.static]:
        window = _beside(step, mask, node, lengths)
        if window is not None:
            return (None if window == 0 else window), node
    return None


def _beside(step: CachedStep, mask: Node, bias: Node, lengths: tuple[Any, Any]) -> int | None:
    """The window (0 for none) of ``mask`` without ``bias``, where it is that wherever it hides nothing."""
    if not 1 <= ndim(bias) <= 4:
        return None
    windows = set()
    for sizes in step.values.sizes():
        try:
            whole, part = step.values.run([mask, bias], {}, sizes)
            rows, columns = (step.values.number(length, sizes) for length in lengths)
            shown = whole > _HIDDEN
            same = torch.broadcast_to(part, whole.shape)
        except (CannotEvaluate, RuntimeError):
            return None
        if not bool(shown.any()) or not torch.equal(whole[shown], same[shown]) or not bool((same > _HIDDEN).all()):
            return None
        form = _visible_form(shown, rows, columns)
        if form is None:
            return None
        windows.add(form)
    windows = windows - {0} or windows
    return windows.pop() if len(windows) == 1 else None


def _in_layer(step: CachedStep, edit: Editor, bias: Node, keys: Node) -> Node:
    """``bias`` computed within a layer, where the number of all keys is known: that of those which the cache gave."""
    axis, total = next((axis, size) for axis, size in enumerate(shape(keys)) if _counts_all(step, size))
    size = edit.call(_aten.sym_size.int, keys, axis, val=total)
    copies: dict[Node, Node] = {}
    for node in sorted({bias, *ancestors([bias])}):
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt) and value.node.expr == total.node.expr:
            copies[node] = size
        elif step.past not in symbols([node, *node.all_input_nodes]) and not any(
            item in copies for item in node.all_input_nodes
        ):
            continue  # it is the same for all layers
        elif isinstance(value, torch.Tensor) and node.op == "call_function":
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda item: copies.get(item, item))
            copies[node] = edit.call(node.target, *args, val=value, **kwargs)
    return copies.get(bias, bias)


def _counts_all(step: CachedStep, size: Any) -> bool:
    return not isinstance(size, int) and bool(size.node.expr == step.past + step.length)


def _visible_form(shown: torch.Tensor, rows: int, columns: int) -> int | None:
    """0 where all tokens up to its own are seen, else the window; None for another form."""
    if shown.shape[-2:] != (rows, columns):
        return None
    triangle = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
    if bool((shown == triangle).all()):
        return 0
    window = int(shown.reshape(-1, rows, columns)[0, -1].sum())
    return window if window and bool((shown == (triangle & ~triangle.tril(columns - rows - window))).all()) else None


# Attention that is written out, since something is done to the scores (soft caps): a mask is added to them.
def _hides(step: CachedStep, node: Node) -> bool:
    return is_float(node) and ndim(node) >= 3 and any(True for _ in _hiding(step, node))


def _hiding(step: CachedStep, node: Node) -> Iterator[tuple[Node, Node]]:
    """The mask of masked scores, and the scores."""
    tensors = [item for item in node.args if isinstance(item, Node) and ndim(item) >= 2]
    for mask in tensors:
        others = [item for item in tensors if item is not mask]
        if len(others) == 1 and mask in step.values.static and others[0] not in step.values.static:
            if step.past is not None and step.past in symbols([mask]):
                yield mask, others[0]


def _scores(step: CachedStep, masks: _Masks, fetched: Mapping[int, Node], node: Node) -> None:
    mask, scores = next(iter(_hiding(step, node)))
    layer = _layer(fetched, (scores,), node)
    lengths = shape(scores)[-2], shape(scores)[-1]
    boolean = mask.meta["val"].dtype is torch.bool
    if kind(node) == "where" and not (boolean and node.args[1] is scores):
        raise NotCached(f"the scores of {where(node)} are chosen in a way that is not known")
    window, bias = _form(step, mask, lengths, node)
    edit = Editor(step.captured, node)
    if bias is not None:
        scores = edit.call(_aten.add.Tensor, scores, _in_layer(step, edit, bias, fetched[layer]))
    given = masks.of(layer, window, array=True)
    edit.replace(edit.call(cache_ops.masked_scores, scores, given, val=node.meta["val"]))
