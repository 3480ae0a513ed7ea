"""What new tokens see of all keys, found by computing masks at several sizes; and biases apart from it."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.lower.fused_ops import causal, sliding_window
from mlxport.graph.rewrite.caches.cached_step import CachedStep, CacheKind, NotCached
from mlxport.graph.rewrite.fuse.mask_forms import mask_form, numbers_of
from mlxport.graph.rewrite.fuse.values import CannotEvaluate
from mlxport.graph.rewrite.graph_queries import ancestors, is_float, ndim, where

__all__ = ["is_lowest", "visible_keys"]

_HIDDEN = -1e4  # an added mask hides what it makes smaller than this


def is_lowest(step: CachedStep, fill: Any) -> bool:
    """Whether ``fill`` hides the scores that it is put in the place of, or added to."""
    number = step.values.scalar(fill)
    return number is not None and number <= _HIDDEN


def visible_keys(
    step: CachedStep, mask: Any, lengths: tuple[Any, Any], node: Node, shown: bool | None = None
) -> tuple[CacheKind, Node | None]:
    """What a mask shows of the keys, and what is added to the scores beside it.

    Args:
        step: The step.
        mask: Of an attention: ``"causal"``, truth values, or what is added to scores.
        lengths: Number of queries and of keys.
        node: The attention.
        shown: The truth value that shows a key; by default what the mask's dtype says.

    Raises:
        NotCached: None of the forms that mlx-lm's caches have.
    """
    if mask is None and step.source is not None:
        return CacheKind(), None  # made for one new token: several see what they would one by one
    if mask is None:
        raise NotCached(f"the attention of {where(node)} hides nothing, later tokens neither")
    if mask == "causal" or mask.target is causal:
        return CacheKind(), None
    if mask.target is sliding_window:
        return CacheKind(window=mask.args[1]), None
    step.values.learn(mask)
    visible = True if shown is None and mask.meta["val"].dtype is torch.bool else shown
    found = mask_form(mask, step.values, lengths, visible)
    if found == "causal" or isinstance(found, int):
        return CacheKind(window=found if isinstance(found, int) else None), None
    if visible and (chunk := _chunk(step, mask, lengths)) is not None:
        return CacheKind(chunk=chunk), None
    if visible is None and (parts := _bias(step, mask, lengths)) is not None:
        return parts
    raise NotCached(f"the mask of {where(node)} has a form that mlx-lm's caches do not have")


def _bias(step: CachedStep, mask: Node, lengths: tuple[Any, Any]) -> tuple[CacheKind, Node] | None:
    """The window of an added mask, and the node among those that it is made of that is added where a key is seen."""
    for node in [item for item in sorted(ancestors([mask])) if is_float(item) and item in step.values.static]:
        window = _beside(step, mask, node, lengths)
        if window is not None:
            return CacheKind(window=window or None), node
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


def _visible_form(shown: torch.Tensor, rows: int, columns: int) -> int | None:
    """0 where all tokens up to its own are seen, else the window; None for another form."""
    if shown.shape[-2:] != (rows, columns):
        return None
    triangle = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
    if bool((shown == triangle).all()):
        return 0
    window = int(shown.reshape(-1, rows, columns)[0, -1].sum())
    return window if window and bool((shown == (triangle & ~triangle.tril(columns - rows - window))).all()) else None


def _chunk(step: CachedStep, mask: Node, lengths: tuple[Any, Any]) -> int | None:
    """The number of tokens of a chunk, where a token sees those before it in its own chunk alone."""
    for number in sorted(numbers_of(mask, step.values)):
        try:
            if all(_in_chunks(step, mask, lengths, number, stand_in) for stand_in in (4, 7)):
                return number
        except CannotEvaluate:
            continue
    return None


def _in_chunks(step: CachedStep, mask: Node, lengths: tuple[Any, Any], number: int, chunk: int) -> bool:
    """Whether the mask shows chunks of ``chunk`` tokens when that stands in the place of ``number``."""
    for sizes in step.values.sizes():
        (shown,) = step.values.run([mask], {}, sizes, {number: chunk})
        rows, columns = (step.values.number(length, sizes) for length in lengths)
        keys, queries = torch.arange(columns), torch.arange(columns - rows, columns)[:, None]
        if not bool((shown == ((keys // chunk == queries // chunk) & (keys <= queries))).all()):
            return False
    return True
