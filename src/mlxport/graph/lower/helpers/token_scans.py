"""States after each of many tokens at once, where a module gives each token a row of its own: [B * L, ...]."""

from __future__ import annotations

import mlx.core as mx

from mlxport.graph.lower.helpers.stored_states import keep_state, prefix_scan, with_past


def of_tokens(x, rows, length):
    """``x``, which has a row for each token or one for all, as [B, L, ...]."""
    return mx.broadcast_to(x, (rows, *x.shape[1:])).reshape(-1, length, *x.shape[1:])


def where_valid(mask, x, other):
    """``x`` [B * L, ...], and ``other`` in the rows of padding, which ``mask`` [B, L] hides."""
    return x if mask is None else mx.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, other)


def all_states(join, change, new, cache, slot, length):
    """The states before and after each token, both [B * L, ...]: ``join`` makes one of what changes it and what is."""
    rows, change = new.shape[0], change.astype(mx.float32)
    first = None if cache is None else cache[slot]
    if first is None:
        first = mx.zeros((rows // length, *new.shape[1:]))
    if length == 1:
        before = first
        last = after = join([change, first], [change, new])[1]
    else:
        change, new, first = of_tokens(change, rows, length), of_tokens(new, rows, length), first[:, None]
        start = mx.zeros_like(change[:, :1])  # nothing comes before it
        parts = [mx.concatenate(pair, axis=1) for pair in ((start, change), (first, new))]
        states = prefix_scan(join, parts)[1]
        before, after, last = states[:, :-1].flatten(0, 1), states[:, 1:].flatten(0, 1), states[:, -1]
    if cache is not None:
        keep_state(cache, slot, last, length)
    return before, after


def linear_states(decay, new, cache, slot, mask, length):
    """``state = decay * state + new`` before and after each token; decay, new: [B * L, ...]."""

    def join(earlier, later):
        return later[0] * earlier[0], later[1] + later[0] * earlier[1]

    return all_states(join, where_valid(mask, decay, 1), where_valid(mask, new, 0), cache, slot, length)


def largest_states(added, new, cache, slot, mask, length):
    """``state = max(state + added, new)`` before and after each token; added, new: [B * L, ...]."""

    def join(earlier, later):
        return later[0] + earlier[0], mx.maximum(later[1], later[0] + earlier[1])

    return all_states(join, where_valid(mask, added, 0), where_valid(mask, new, -mx.inf), cache, slot, length)


def past_windows(x, width, cache, slot, mask, length):
    """The last ``width`` rows before each token and its own, [B * L, width + 1, C]; x: [B * L, C]."""
    x = with_past(x.reshape(-1, length, x.shape[-1]), width, cache, slot, mask)
    if length == 1:
        return x
    return x[:, mx.arange(length)[:, None] + mx.arange(width + 1)].flatten(0, 1)


def linear_attention(q, k, v, decay, cache, slot, mask, length):
    """``state = decay * state + k v``, ``y = q state``; q, k [B * L, H, D], v [B * L, H, E], decay [B * L or 1, H]."""
    rows, dtype, decay = q.shape[0], v.dtype, decay.astype(mx.float32)
    k, decay = where_valid(mask, k, 0), where_valid(mask, decay, 1)  # padding neither decays nor adds
    state = None if cache is None else cache[slot]
    if state is None:
        state = mx.zeros((rows // length, *k.shape[1:], v.shape[-1]))
    if length == 1:
        state = decay[..., None, None] * state + k[..., None] * v[..., None, :]
        y = (q[..., None, :] @ state).squeeze(-2)
    else:
        parts = [of_tokens(item, rows, length).swapaxes(1, 2) for item in (q, k, v, decay[..., None])]
        y, state = attention_chunks(*parts, state)
        y = y.swapaxes(1, 2).flatten(0, 1)
    if cache is not None:
        keep_state(cache, slot, state, length)
    return y.astype(dtype)


def attention_chunks(q, k, v, decay, state, size=64):
    """Linear attention of many tokens, [B, H, L, ...] each, in chunks: what those of one see of each other, and before.

    Decays are multiplied, not divided: none overflows.
    """
    length = q.shape[2]
    size = min(size, length)
    more = [(0, 0), (0, 0), (0, -length % size), (0, 0)]
    parts = [mx.pad(q, more), mx.pad(k, more), mx.pad(v, more), mx.pad(decay, more, constant_values=1)]
    q, k, v, decay = [item.reshape(*item.shape[:2], -1, size, item.shape[-1]) for item in parts]
    steps = mx.where(mx.tri(size, k=-1, dtype=mx.bool_), decay, 1)
    between = mx.cumprod(steps, axis=3) * mx.tri(size)  # from each token to those after it
    passed = mx.cumprod(decay, axis=3)
    within = ((q @ k.swapaxes(3, 4)) * between) @ v
    q, k = q * passed, k * between[..., -1, :, None]
    ys = []
    for i in range(q.shape[2]):
        ys.append(within[:, :, i] + q[:, :, i] @ state)
        state = passed[:, :, i, -1:] * state + k[:, :, i].swapaxes(2, 3) @ v[:, :, i]
    return mx.concatenate(ys, axis=2)[:, :, :length], state
