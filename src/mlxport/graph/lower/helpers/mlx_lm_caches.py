"""What a step of generation computes from the caches of mlx-lm."""

from __future__ import annotations

import mlx.core as mx


def row_offset(offset):
    """``offset``, to be added to numbers [B, L]; in a batch there may be one for each row."""
    return offset[:, None] if isinstance(offset, mx.array) and offset.ndim else offset


def positions_after(tokens, offset, start=0):
    """Positions [1 or B, L] of the tokens that come after ``offset`` others; in a batch an offset for each row."""
    steps = mx.arange(start, start + tokens.shape[1])[None]
    return steps + (offset[:, None] if isinstance(offset, mx.array) and offset.ndim else offset)


def same_positions(positions):
    """Positions [L] that all rows of a batch have."""
    if positions.shape[0] > 1:
        raise ValueError("this model counts the positions of a batch once: its prompts must be of one length")
    return positions[0]


def chunk_mask(tokens, caches, index, chunk):
    """What ``tokens`` see of the keys in ``caches[index]``: those of their own chunk. Caches drop the chunks before."""
    start = offset = 0
    if caches[index] is not None:
        for cache in caches:
            if hasattr(cache, "maybe_trim_front"):
                cache.maybe_trim_front()
        start, offset = caches[index].start_position, caches[index].offset
    if start > offset // chunk * chunk:
        raise ValueError("the cache was trimmed back to a chunk that it no longer holds: start from an empty one")
    keys = mx.arange(start, offset + tokens.shape[1])
    queries = mx.arange(offset, offset + tokens.shape[1])[:, None]
    return (keys // chunk == queries // chunk) & (keys <= queries)


def masked_scores(scores, visible):
    """Scores (or what is added to them) of the keys that are seen, the lowest number for others; None shows all."""
    return scores if visible is None else mx.where(visible, scores, mx.finfo(scores.dtype).min)
