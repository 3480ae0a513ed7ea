"""Ops on mlx-lm's caches, which the pass ``rewrite.caches`` writes into the graph of a step of generation.

None has a meaning in torch: a cache is an object, and what it gives depends on what was put into it before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mlxport.graph.lower.traits import declare

__all__ = [
    "attend",
    "attention_mask",
    "biased_mask",
    "chosen_mask",
    "chunk_mask",
    "entry",
    "fetch_index",
    "gated_delta",
    "kept",
    "latent_attention",
    "mask_of_rows",
    "masked_scores",
    "offset",
    "positions",
    "row_offset",
    "same_positions",
    "selective_scan",
    "state_mask",
    "state_space",
    "swiglu",
    "update_and_fetch",
    "with_past",
]


def entry(caches: Any, index: int, part: int | None = None) -> Any:
    """``cache[index]``: the cache of one layer; ``cache[index][part]`` of one that has several."""
    raise NotImplementedError


def kept(cache: Any, index: int, sizes: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """``cache[index]``: an array that a cache was given before; its sizes are those of the example."""
    raise NotImplementedError


def offset(caches: Any, index: int, part: int | None = None, given: bool = False) -> Any:
    """Tokens that the cache of one layer holds; in a batch of different lengths, an array with one number a row.

    Without a cache it is 0, unless one is always ``given``.
    """
    raise NotImplementedError


def update_and_fetch(cache: Any, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All keys and values [batch, heads, total, width], the new [batch, heads, length, width] put after the old."""
    raise NotImplementedError


def fetch_index(cache: Any, keys: torch.Tensor) -> torch.Tensor:
    """All keys [batch, total, width] of an index, the new [batch, length, width] put after the old."""
    raise NotImplementedError


def attention_mask(like: torch.Tensor, cache: Any, window: int | None = None, array: bool = False) -> Any:
    """What new tokens see of all: None, ``"causal"``, or truth values; always truth values or None with ``array``."""
    raise NotImplementedError


def chunk_mask(like: torch.Tensor, caches: Any, index: int, chunk: int) -> Any:
    """What new tokens see of the keys that the cache of one layer holds: those of their own chunk, up to their own."""
    raise NotImplementedError


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: Any,
    mask: Any,
    scale: float = 1.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention to what a cache gave, quantized or not; as ``fused_ops.attention``."""
    raise NotImplementedError


def latent_attention(
    query: torch.Tensor,
    query_pe: torch.Tensor,
    latents: torch.Tensor,
    key_pe: torch.Tensor,
    embed_q: Any,
    unembed_out: Any,
    cache: Any,
    mask: Any,
    scale: float = 1.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of queries in two parts to keys and values of several heads that are made of what a cache gave.

    Args:
        query: [batch, heads, length, width].
        query_pe: [batch, heads, length, other width].
        latents: [batch, 1, total, rank].
        key_pe: [batch, 1, total, other width], a part of the keys of all heads.
        embed_q: The layer of matrices [heads, rank, width] that take queries to latents.
        unembed_out: The layer of matrices [heads, width of values, rank] that take latents to values.
        cache: Of the layer.
        mask: Truth values, or None.
        scale: Of the scores.
        sinks: Scores [heads] of what is not there.
    """
    raise NotImplementedError


def positions(like: torch.Tensor, offset: Any, start: int = 0) -> torch.Tensor:
    """Positions [1 or batch, length] of new tokens after ``offset`` others, from ``start`` on."""
    raise NotImplementedError


def row_offset(offset: Any) -> Any:
    """Tokens before, to be added to numbers [batch, length] of new ones."""
    raise NotImplementedError


def same_positions(positions: torch.Tensor) -> torch.Tensor:
    """Positions [length] of a batch whose rows have all the same; an error where they have not."""
    raise NotImplementedError


def biased_mask(bias: torch.Tensor, visible: Any) -> torch.Tensor:
    """``bias`` where ``visible`` shows a key and the lowest number elsewhere; ``bias`` itself where it is None."""
    raise NotImplementedError


def masked_scores(scores: torch.Tensor, visible: Any) -> torch.Tensor:
    """``scores`` where ``visible`` shows a key and the lowest number elsewhere; ``scores`` itself where it is None."""
    raise NotImplementedError


def mask_of_rows(visible: Any) -> Any:
    """A mask for scores without an axis of heads: [length, total], in a batch [batch, length, total]; or None."""
    raise NotImplementedError


def chosen_mask(places: torch.Tensor, keys: int, visible: Any) -> torch.Tensor:
    """Which of all ``keys`` are at the ``places`` [batch, length, chosen], and shown by ``visible`` where it is any.

    Truth values [batch, 1, length, total].
    """
    raise NotImplementedError


# States: what a layer keeps at ``slot`` of its cache. ``mask`` hides padding; None, where no row has any.
def state_mask(like: torch.Tensor, cache: Any) -> Any:
    """Which of the new tokens [batch, length] are no padding; None where all are."""
    raise NotImplementedError


def with_past(x: torch.Tensor, width: int, cache: Any, slot: int, mask: Any) -> torch.Tensor:
    """``x`` [batch, length, channels] after the last ``width`` inputs before it; zeros before the first."""
    raise NotImplementedError


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    cache: Any,
    slot: int,
    mask: Any,
) -> torch.Tensor:
    """``state_ops.selective_scan`` from the state that is kept; x, dt [batch, length, D], B, C [batch, length, N]."""
    raise NotImplementedError


def state_space(
    x: torch.Tensor,
    dt: torch.Tensor,
    A_log: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    dt_bias: torch.Tensor,
    limits: tuple[float, float],
    cache: Any,
    slot: int,
    mask: Any,
) -> torch.Tensor:
    """``state_ops.state_space`` from the state that is kept; A is ``-exp(A_log)``."""
    raise NotImplementedError


def gated_delta(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    cache: Any,
    slot: int,
    mask: Any,
) -> torch.Tensor:
    """``state_ops.gated_delta`` from the state that is kept."""
    raise NotImplementedError


@declare(pointwise=True)
def swiglu(gate: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * x``, both of one shape."""
    raise NotImplementedError
