"""Affine quantization whose scales and biases are searched for the least squared error, without data.

Round-to-nearest (``mx.quantize``) spans each group from its smallest to its largest weight. Here the span is narrowed
first, which clips the ends and makes the steps between finer; to the codes that this gives a line is fitted by least
squares (a scale and a bias), and to the codes of this line another. Codes are then computed against scale and bias as
rounded to the weight's dtype, so that what is stored is what was optimised, and a group whose error does not fall
keeps round-to-nearest's own scale and bias: none is worse.

Errors are not weighted: weights that grow with magnitude (``abs(w)`` plus a multiple of the group's root mean square)
moved the divergence of trained models up as often as down.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

__all__ = ["SPANS", "pack", "search_affine", "search_bytes"]

# How far the span is narrowed, by bits and group size: measured on trained weights to leave about the least squared
# error, and at 2 and 3 bits, where values near by leave as little, the least divergence. Several spans to choose from,
# and more rounds, lower the error by another 1 to 2% each and cost half of mx.quantize's time.
SPANS: dict[int, dict[int, float]] = {
    2: {32: 0.75, 64: 0.7, 128: 0.65},
    3: {32: 0.9, 64: 0.9, 128: 0.85},
    4: {32: 0.97, 64: 0.95, 128: 0.93},
    5: {32: 0.995, 64: 0.985, 128: 0.98},
    6: {32: 1.0, 64: 0.998, 128: 0.995},
    8: {32: 1.0, 64: 1.0, 128: 1.0},
}
_EPS = 1e-7  # the least scale of mx.quantize
_TINY = 1e-30  # a span below this is none
# Weights that are worked on at once, and the bytes that the temporaries of each take, measured.
_CHUNK = 1 << 19
_BYTES = 40


def search_affine(
    weight: mx.array, *, group_size: int, bits: int, chunk: int | None = _CHUNK
) -> tuple[mx.array, mx.array, mx.array]:
    """Packed weights, scales and biases in MLX's affine format: what ``mx.quantize`` returns, with a lower error.

    Args:
        weight: Floating, shape [..., columns], columns a multiple of ``group_size``.
        group_size: 32, 64 or 128.
        bits: 2, 3, 4, 5, 6 or 8.
        chunk: Weights to work on at once, each part evaluated before the next; None leaves everything lazy.

    Returns:
        uint32 [..., columns * bits / 32], and scales and biases [..., columns / group_size] in the weight's dtype.
    """
    if not weight.size:
        words, scales, biases = mx.quantize(weight, group_size=group_size, bits=bits)
        return words, scales, biases
    groups = weight.reshape(-1, group_size)
    step = groups.shape[0] if chunk is None else max(1, chunk // group_size)
    found = []
    for start in range(0, groups.shape[0], step):
        found.append(_quantized(groups[start : start + step], bits))
        if chunk is not None:
            mx.eval(found[-1])
    whole = found[0] if len(found) == 1 else [mx.concatenate(list(parts)) for parts in zip(*found, strict=True)]
    shape = (*weight.shape[:-1], -1)
    return whole[0].reshape(shape).view(mx.uint32), whole[1].reshape(shape), whole[2].reshape(shape)


def search_bytes(weights: int) -> int:
    """Bytes of the temporaries of a search through as many weights."""
    return _BYTES * min(weights, _CHUNK)


def _quantized(groups: mx.array, bits: int) -> tuple[mx.array, mx.array, mx.array]:
    """Bytes of packed codes [groups, bytes], scales and biases [groups, 1] of weights [groups, group size]."""
    dtype, most = groups.dtype, (1 << bits) - 1
    wide = groups.astype(mx.float32)
    low, high = _reduce(wide, mx.min), _reduce(wide, mx.max)
    # Each span becomes as many ticks as 16 bits hold times a code.
    tick = (high - low) / _ticks(most)
    per_tick = mx.where(tick > _TINY, 1 / mx.maximum(tick, _TINY), 0.0)
    ticks = (wide - low) * per_tick  # from 0 on: nothing cancels far from zero, no square overflows

    def tried(scale: mx.array, bias: mx.array) -> tuple[mx.array, mx.array]:
        """Codes, and their error in ticks, of a scale and a bias as they are stored."""
        slope = scale * per_tick
        exact, codes = _codes(ticks, slope, (bias - low) * per_tick, most)
        error = _reduce(mx.square(exact - codes), mx.sum) * mx.square(slope)
        return codes.astype(mx.uint8), mx.where(mx.abs(slope) > _flattest(most), error, float("inf"))

    scale, bias = (_stored(x, dtype) for x in _nearest(low, high, most))
    slope, offset = _fitted(ticks, bits)
    best_scale, best_bias = _stored(slope * tick, dtype), _stored(offset * tick + low, dtype)
    (codes, error), (best, best_error) = tried(scale, bias), tried(best_scale, best_bias)
    better = best_error < error
    chosen = codes + (best - codes) * better.astype(mx.uint8)  # cheaper than mx.where on the CPU; wraps around
    scales, biases = mx.where(better, best_scale, scale), mx.where(better, best_bias, bias)
    return pack(chosen, bits), scales.astype(dtype), biases.astype(dtype)


def _nearest(low: mx.array, high: mx.array, most: int) -> tuple[mx.array, mx.array]:
    """Scale and bias of ``mx.quantize``: the end that is farther from zero is exact, and zero has a code."""
    below = mx.abs(low) > mx.abs(high)
    scale = mx.maximum((high - low) / most, _EPS)
    scale = mx.where(below, scale, -scale)
    edge = mx.where(below, low, high)
    count = mx.round(edge / scale)
    at_zero = count == 0
    return mx.where(at_zero, scale, edge / mx.where(at_zero, 1.0, count)), mx.where(at_zero, 0.0, edge)


def _fitted(ticks: mx.array, bits: int) -> tuple[mx.array, mx.array]:
    """Slope and offset by least squares, to the codes of the narrowed span and then to those of that line."""
    most, size = (1 << bits) - 1, ticks.shape[-1]
    # Sums of integers are several times as fast, but too coarse for 8 bits.
    values = (ticks + 0.5).astype(mx.uint16) if bits < 8 else ticks
    total = _sum(values)

    def line(codes: mx.array) -> tuple[mx.array, mx.array]:
        first, second = _sum(codes), _sum(codes * codes)
        across = size * _sum(values * codes) - first * total
        slope = across / mx.maximum(size * second - first * first, 1.0)
        return slope, (total - slope * first) * (1 / size)

    span, factor = _ticks(most), SPANS[bits][size]
    _, codes = _codes(ticks, mx.array(span * factor / most), mx.array(span * (1 - factor) / 2), most)
    _, codes = _codes(ticks, *line(codes), most)
    return line(codes)


def _ticks(most: int) -> int:
    """Ticks of a group's span: a multiple of ``most``, that times ``most`` fits in 16 bits."""
    return 65535 // most // most * most


def _flattest(most: int) -> float:
    """The least slope, in ticks a code, with which what lies beyond the last code still fits in 16 bits."""
    return _ticks(most) / most / 64


def _codes(ticks: mx.array, slope: mx.array, offset: mx.array, most: int) -> tuple[mx.array, mx.array]:
    """The codes before rounding, and the nearest ones as uint16."""
    steepest = 1 / _flattest(most)
    inverse = mx.clip(1 / slope, -steepest, steepest)
    exact = ticks * inverse - offset * inverse
    whole = (exact + 0.5).astype(mx.int16)
    return exact, mx.minimum(mx.maximum(whole, mx.array(0, mx.int16)), mx.array(most, mx.int16)).view(mx.uint16)


def _stored(values: mx.array, dtype: mx.Dtype) -> mx.array:
    """Values as the output holds them."""
    return values.astype(dtype).astype(mx.float32)


def _sum(values: mx.array) -> mx.array:
    """The sum of each group; MLX sums integers in 32 bits, which hold these."""
    if mx.issubdtype(values.dtype, mx.floating):
        return _reduce(values, mx.sum)
    return values.sum(axis=-1, keepdims=True).astype(mx.float32)


def _reduce(values: mx.array, operation: Callable[..., mx.array]) -> mx.array:
    """Reduce each group, over two axes in turn: the CPU does the first with vector instructions."""
    halved = operation(values.reshape(values.shape[0], 8, -1), axis=1)
    return operation(halved, axis=-1, keepdims=True)


def pack(codes: mx.array, bits: int) -> mx.array:
    """Codes [groups, size] as bytes [groups, size * bits / 8]: one little-endian bit stream, eight codes at a time."""
    if bits == 8:
        return codes
    words = codes.view(mx.uint64)
    for lane, keep in ((8, 0x00FF00FF00FF00FF), (16, 0x0000FFFF0000FFFF), (32, 0x00000000FFFFFFFF)):
        # In lanes of twice the width, the upper half moves down to where the lower half's codes end.
        lower = words & mx.array(keep, mx.uint64)
        words = lower | ((words ^ lower) >> mx.array((8 - bits) * (lane // 8), mx.uint64))
    # The first ``bits`` of every eight bytes, in the widest words that fit.
    kind, wide = {1: (mx.uint8, 1), 2: (mx.uint16, 2), 4: (mx.uint32, 4)}[bits & -bits]
    kept = mx.contiguous(words[..., None].view(kind)[..., : bits // wide])
    return kept.reshape(codes.shape[0], -1).view(mx.uint8)
