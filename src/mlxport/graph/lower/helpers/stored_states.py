"""Scans and convolutions that continue from what mlx-lm's ``ArraysCache`` keeps; without one, from the start."""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.models.gated_delta import gated_delta_kernel, gated_delta_ops
from mlx_lm.models.ssm import ssm_update


def keep_state(cache, slot, state, length):
    """Keep a layer's state after ``length`` more tokens; the last of them moves the cache on."""
    cache[slot] = state
    if slot == len(cache.cache) - 1:
        cache.advance(length)


def recall(cache, slot, sizes, dtype):
    """What the last token left; zeros before the first."""
    return mx.zeros(sizes, dtype) if cache[slot] is None else cache[slot]


def keep_token(cache, slot, before, state, mask=None):
    """Keep a layer's state after one token; rows in which that is padding keep what they had."""
    if mask is not None:
        state = mx.where(mask.reshape(-1, *[1] * (state.ndim - 1)), state, before)
    keep_state(cache, slot, state, 1)


def each_token(step, mask, length, axis=1):
    """What ``step`` gives for one token after another, put together along ``axis``; ``mask`` hides padding."""
    made = [step(t, None if mask is None else mask[:, t]) for t in range(length)]
    if isinstance(made[0], tuple):
        return tuple(mx.concatenate(parts, axis=axis) for parts in zip(*made, strict=True))
    return mx.concatenate(made, axis=axis)


def with_past(x, width, cache, slot, mask=None):
    """``x`` [B, L, C] after the last ``width`` inputs before it, zeros before the first."""
    length = x.shape[1]
    if mask is not None:
        x = mx.where(mask[..., None], x, 0)
    past = None if cache is None else cache[slot]
    if past is None:
        past = mx.zeros((x.shape[0], width, x.shape[2]), x.dtype)
    x = mx.concatenate([past, x], axis=1)
    if cache is not None:
        if cache.lengths is None:
            last = x[:, length:]
        else:  # rows of a batch end before their padding
            ends = mx.clip(cache.lengths, 0, length)[:, None] + mx.arange(width)
            last = mx.take_along_axis(x, ends[..., None], axis=1)
        keep_state(cache, slot, last, length)
    return x


def selective_scan(x, dt, A, B, C, cache, slot, mask=None):
    """Mamba's scan: state = exp(dt A) state + dt x B, y = state C; x, dt [B, L, D], A [D, N], B, C [B, L, N]."""
    if mask is not None:
        dt = mx.where(mask[..., None], dt, 0)  # a step of no time leaves the state as it is
    state = None if cache is None else cache[slot]
    if x.shape[1] == 1:
        new = (dt * x).swapaxes(1, 2) * B
        state = new if state is None else new + state * mx.exp(dt.swapaxes(1, 2) * A)
        y = C @ state.swapaxes(1, 2)
    else:
        y, state = scan_spans(dt * x, dt, A, B, C, state)
    if cache is not None:
        keep_state(cache, slot, state, x.shape[1])
    return y.astype(x.dtype)


def scan_spans(dtx, dt, A, B, C, state, span=32, most=512):
    """Mamba's scan of many tokens: all spans at once, from nothing to know what each starts from, and then from that.

    Decays of at most ``most`` tokens are held at a time.
    """
    length = dt.shape[1]
    if length > most:
        ys = []
        for begin in range(0, length, most):
            dtx_, dt_, B_, C_ = [item[:, begin : begin + most] for item in (dtx, dt, B, C)]
            y, state = scan_spans(dtx_, dt_, A, B_, C_, state)
            ys.append(y)
        return mx.concatenate(ys, axis=1), state
    span = -(-length // -(-length // span))  # as few as give the same number of spans
    parts = [mx.pad(item, [(0, 0), (0, -length % span), (0, 0)]) for item in (dtx, dt, B, C)]
    dtx, dt, B, C = [item.reshape(item.shape[0], -1, span, 1, item.shape[-1]) for item in parts]
    dtx, dt, C = [item.swapaxes(3, 4) for item in (dtx, dt, C)]
    decays = [mx.exp(dt[:, :, t] * A) for t in range(span)]

    def after(states, t, spans=None):
        return decays[t][:, :spans] * states + dtx[:, :spans, t] * B[:, :spans, t]

    starts = [mx.zeros_like(decays[0][:, 0]) if state is None else state]
    before = dt.shape[1] - 1
    if before:
        inner, whole = mx.zeros_like(decays[0][:, :before]), mx.exp(dt.sum(axis=2) * A)
        for t in range(span):
            inner = after(inner, t, before)
        for i in range(before):
            starts.append(whole[:, i] * starts[i] + inner[:, i])
    states, ys = mx.stack(starts, axis=1), []
    for t in range(span):
        states = after(states, t)
        ys.append((states @ C[:, :, t]).squeeze(-1))
    return mx.stack(ys, axis=2).flatten(1, 2)[:, :length], states[:, -1]


def state_space(x, dt, A_log, B, C, D, dt_bias, limits, cache, slot, mask=None):
    """Mamba 2's scan, as mlx-lm computes it; x [B, L, H, P], dt [B, L, H], B, C [B, L, G, N]."""
    state, lengths = (None, None) if cache is None else (cache[slot], cache.lengths)
    if lengths is not None:
        lengths = mx.minimum(lengths, x.shape[1])  # what comes in a later chunk is no end of a row
    y, state = ssm_update(x, A_log, B, C, D, dt, dt_bias, state, limits, mask, lengths)
    if cache is not None:
        keep_state(cache, slot, state, x.shape[1])
    return y


def gated_delta(q, k, v, g, beta, cache, slot, mask=None):
    """The gated delta rule; q, k [B, L, Hk, Dk], v [B, L, Hv, Dv], g [B, L, Hv] or [B, L, Hv, Dk], beta [B, L, Hv]."""
    if mask is not None:  # what neither decays nor learns leaves the state as it is
        g = mx.where(mask.reshape(*mask.shape, *[1] * (g.ndim - 2)), g, 0)
        beta = mx.where(mask[..., None], beta, 0)
    state = None if cache is None else cache[slot]
    if state is None:
        state = mx.zeros((v.shape[0], *v.shape[2:], k.shape[-1]))
    on_metal = mx.metal.is_available() and mx.default_device() == mx.gpu
    if on_metal and k.shape[-1] % 32 == 0:
        y, state = gated_delta_kernel(q, k, v, mx.exp(g), beta, state)
    elif v.shape[1] == 1:
        y, state = gated_delta_ops(q, k, v, mx.exp(g), beta, state)
    else:
        y, state = delta_chunks(q, k, v, g, beta, state)
    if cache is not None:
        keep_state(cache, slot, state, v.shape[1])
    return y


def delta_chunks(q, k, v, g, beta, state, size=16):
    """The gated delta rule of many tokens in chunks: what those of one correct in each other is a triangular system."""
    length, groups = v.shape[1], v.shape[2] // k.shape[2]
    size = min(size, length)
    g = g if g.ndim == 4 else g[..., None]
    q, k = [mx.repeat(item, groups, axis=2) for item in (q, k)] if groups > 1 else (q, k)
    parts = [item.swapaxes(1, 2) for item in (q, k, v, g, beta[..., None])]
    parts = [mx.pad(item, [(0, 0), (0, 0), (0, -length % size), (0, 0)]) for item in parts]
    q, k, v, g, beta = [item.reshape(*item.shape[:2], -1, size, item.shape[-1]) for item in parts]
    passed = mx.cumsum(g, axis=3)
    earlier = mx.tri(size, dtype=mx.bool_)[..., None]
    between = passed[..., :, None, :] - passed[..., None, :, :]
    between = mx.exp(mx.where(earlier, between, -mx.inf))  # no decay is undone: exponents stay below zero
    if between.shape[-1] == 1:  # one decay for all channels
        known = (k @ k.swapaxes(3, 4)) * between[..., 0]
        seen = (q @ k.swapaxes(3, 4)) * between[..., 0]
    else:
        known = (k[..., :, None, :] * k[..., None, :, :] * between).sum(-1)
        seen = (q[..., :, None, :] * k[..., None, :, :] * between).sum(-1)
    known = beta * known
    right = mx.concatenate([beta * v, beta * k * mx.exp(passed)], axis=-1)
    solved = right[..., :1, :]
    for t in range(1, size):
        row = right[..., t : t + 1, :] - known[..., t : t + 1, :t] @ solved
        solved = mx.concatenate([solved, row], axis=3)
    values, readers = solved[..., : v.shape[-1]], solved[..., v.shape[-1] :]
    q, k, total = q * mx.exp(passed), k * mx.exp(passed[..., -1:, :] - passed), mx.exp(passed[..., -1, :])
    ys = []
    for i in range(q.shape[2]):
        new = values[:, :, i] - readers[:, :, i] @ state.swapaxes(2, 3)
        ys.append(q[:, :, i] @ state.swapaxes(2, 3) + seen[:, :, i] @ new)
        state = state * total[:, :, i, None] + new.swapaxes(2, 3) @ k[:, :, i]
    return mx.concatenate(ys, axis=2).swapaxes(1, 2)[:, :length], state


def prefix_scan(join, parts):
    """What ``join`` makes of all tokens up to each: of parts [B, L, ...], in as many rounds as the length has bits."""
    span = 1
    while span < parts[0].shape[1]:
        later = join([part[:, :-span] for part in parts], [part[:, span:] for part in parts])
        parts = [mx.concatenate([part[:, :span], made], axis=1) for part, made in zip(parts, later, strict=True)]
        span *= 2
    return parts


def wkv(decay, first, k, v, cache, slot, mask=None):
    """RWKV's attention: values weighed by exp(k), which decays from token to token; k, v [B, L, D].

    What is kept is the mean of the values before, and the logarithm of the sum of their weights.
    """
    lowest, dtype, length = -1e30, k.dtype, k.shape[1]
    k, fall = k.astype(mx.float32), -mx.exp(decay.astype(mx.float32))
    keys, values, steps = k, v.astype(mx.float32), mx.ones((1, length, 1))
    if mask is not None:  # padding weighs nothing, and lets no time pass
        mask = mask[..., None]
        keys, values, steps = mx.where(mask, k, lowest), mx.where(mask, v, 0), mask.astype(mx.float32)
    state = None if cache is None else cache[slot]
    if state is None:
        mean, weight = mx.zeros_like(k[:, :1]), mx.full(k[:, :1].shape, lowest)
    else:
        mean, weight = state[:, None, :, 0], state[:, None, :, 1]

    def join(earlier, later):
        (passed, mean, weight), (steps, values, keys) = earlier, later
        weight = weight + steps * fall
        total = mx.logaddexp(weight, keys)
        return passed + steps, values + mx.exp(weight - total) * (mean - values), total

    if length > 1:
        start = mx.zeros_like(steps[:, :1])
        pairs = (start, steps), (mean, values), (weight, keys)
        _, means, weights = prefix_scan(join, [mx.concatenate(pair, axis=1) for pair in pairs])
        mean, weight, last = means[:, :-1], weights[:, :-1], (means[:, -1], weights[:, -1])
    else:
        _, *last = [item.squeeze(1) for item in join((steps, mean, weight), (steps, values, keys))]
    share = mx.sigmoid(k + first - weight)  # of the newest, whose weight is another
    y = mean + share * (v - mean)
    if cache is not None:
        keep_state(cache, slot, mx.stack(last, axis=-1), length)
    return y.astype(dtype)
