"""What a step of generation computes from the caches of mlx-lm."""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.models.base import scaled_dot_product_attention


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


def latent_attention(q, q_pe, latents, k_pe, embed_q, unembed_out, cache, mask, scale, sinks=None):
    """Attention to keys and values that are linear maps of latents [B, 1, T, rank], keys with ``k_pe`` beside them.

    One token is mapped to where the latents are, and what it sees of them back: nothing is computed for those before.
    """
    scores = masked_scores((q_pe * scale) @ k_pe.swapaxes(-1, -2), mask)
    more = {} if sinks is None else {"sinks": sinks}
    if q.shape[2] == 1:
        q = embed_q(q)
        output = scaled_dot_product_attention(q, latents, latents, cache=cache, scale=scale, mask=scores, **more)
        return unembed_out(output)
    k, v = embed_q(latents, transpose=False), unembed_out(latents)
    return scaled_dot_product_attention(q, k, v, cache=cache, scale=scale, mask=scores, **more)


def fetch_index(cache, keys):
    """All keys [B, T, D] of an index, the new [B, L, D] put after the old; a cache keeps them as those of one head."""
    if cache is None:
        return keys
    keys = keys[:, None]
    # A cache keeps values, too: a narrow part, computed with the keys, so that their graph does not grow.
    keys, values = cache.update_and_fetch(keys, keys[..., :1])
    return mx.depends(keys, values)[:, 0]


def mask_of_rows(mask):
    """A mask for scores without an axis of heads: [L, T], or [B, L, T] in a batch; None shows all."""
    return mask[:, 0] if mask is not None and mask.ndim == 4 else mask


def chosen_mask(places, keys, visible):
    """Which of all ``keys`` were chosen, those at ``places`` [B, L, K], and are seen; None shows all."""
    mask = mx.zeros((*places.shape[:2], keys), dtype=mx.bool_)
    mask = mx.put_along_axis(mask, places, mx.array(True), axis=-1)[:, None]
    return mask if visible is None else mask & visible
