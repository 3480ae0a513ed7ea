"""Measure a rotation of pairs: which numbers are pairs, and by which angle each pair is turned at each position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.lower.traits import traits_of
from mlxport.graph.rewrite.fuse.values import CannotEvaluate, Values
from mlxport.graph.rewrite.graph_queries import ndim, shape

__all__ = ["Turn", "measure"]

_EXACT = 1e-6
_LONG = 256  # positions at which frequencies are measured
_MOST = 1 << 20  # numbers that are turned for that


@dataclass(frozen=True)
class Turn:
    """A rotary embedding.

    Attributes:
        axis: Axis of the positions.
        dims: How many numbers, the first of the last axis, are turned.
        traditional: Whether neighbours are pairs, not halves.
        base: Base of the frequencies; None where ``freqs`` has their reciprocals.
        scale: What positions are multiplied with.
        offset: The first position, or the size that it is.
        length: What lengths are multiplied with.
        freqs: Reciprocal frequencies, where they follow no base.
        parted: Whether pairs are neighbours in ``x`` and halves in the result.
    """

    axis: int
    dims: int
    traditional: bool
    base: float | None
    scale: float
    offset: Any
    length: float = 1.0
    freqs: torch.Tensor | None = None
    parted: bool = False


@dataclass(frozen=True)
class _Angles:
    axis: int
    dims: int
    traditional: bool
    ratio: torch.Tensor  # complex: positions by pairs
    length: float
    parted: bool


def measure(x: Node, result: Node, values: Values) -> Turn | str | None:
    """How ``result`` is ``x`` turned; a reason if it is turned in another way than ``mx.fast.rope`` does; None if not.

    Raises:
        CannotEvaluate: if ``result`` depends on more than ``x``.
    """
    angles: _Angles | None = None
    trials = []
    for sizes in values.sizes():
        found = _pairs(x, result, values, sizes)
        if found is None:
            return None if angles is None else "the positions do not count up by one"
        angles = angles or found
        if _kind(found) != _kind(angles):
            return None
        trials.append((sizes, found))
    if angles is None:
        return None
    frequencies = _agreed(_longer(x, result, values, angles, trials[0][0]))
    if frequencies is None or bool((frequencies <= 0).any()):
        return "the positions do not count up by one"
    starts = [_start(found, frequencies) for _, found in trials]
    if any(start is None for start in starts):
        return "the positions do not count up by one"
    offset = _offset(result, values, [(sizes, start) for (sizes, _), start in zip(trials, starts, strict=True)])
    if offset is None:
        return "the first position is not known"
    if any(found.length != angles.length for _, found in trials):
        return None
    if angles.length != 1 and angles.dims != shape(x)[-1]:
        return "a part is scaled, a part is not"
    base, scale = _base(frequencies, angles.dims)
    freqs = (1 / frequencies).to(torch.float32) if base is None else None
    if angles.parted and angles.dims != shape(x)[-1]:
        return "pairs that are neighbours become halves in a part"
    return Turn(angles.axis, angles.dims, angles.traditional, base, scale, offset, angles.length, freqs, angles.parted)


def _kind(angles: _Angles) -> tuple[int, int, bool, bool]:
    return angles.axis, angles.dims, angles.traditional, angles.parted


def _pairs(x: Node, result: Node, values: Values, sizes: Mapping[Any, int]) -> _Angles | None:
    given = values.random(x, sizes)
    if given.shape[-1] < 2 or given.numel() == 0:
        return None
    (got,) = values.run([result], {x: given}, sizes)
    if got.shape != given.shape or got.is_complex() or not bool(torch.isfinite(got).all()):
        return None
    changed = ((got - given).abs() > 1e-12).flatten(0, -2).any(0).nonzero().flatten().tolist()
    dims = len(changed)
    if not dims or dims % 2 or changed != list(range(dims)):
        return None
    for neighbours, kept in ((False, False), (True, True), (True, False)):
        before, after = _complex(given[..., :dims], neighbours), _complex(got[..., :dims], kept)
        found = _ratio(after / before)
        if found is not None:
            axis, ratio, length = found
            return _Angles(axis, dims, kept, ratio, length, neighbours is not kept)
    return None


def _complex(x: torch.Tensor, traditional: bool) -> torch.Tensor:
    pairs = (x[..., ::2], x[..., 1::2]) if traditional else x.chunk(2, dim=-1)
    return torch.complex(pairs[0].contiguous(), pairs[1].contiguous())


def _ratio(ratio: torch.Tensor) -> tuple[int, torch.Tensor, float] | None:
    """The one axis along which the ratio differs, the ratio along it by pairs, and its length."""
    rank = ratio.ndim
    axes = [axis for axis in range(rank - 1) if bool(((ratio - ratio.narrow(axis, 0, 1)).abs() > _EXACT).any())]
    if len(axes) != 1:
        return None
    moved = ratio.movedim(axes[0], 0).reshape(ratio.shape[axes[0]], -1, ratio.shape[-1])
    lengths = moved.abs()
    length = float(lengths.mean())
    if float((lengths - length).abs().max()) > _EXACT or length == 0:
        return None
    return axes[0], moved[:, 0], 1.0 if abs(length - 1) < _EXACT else round(length, 9)


def _longer(x: Node, result: Node, values: Values, angles: _Angles, sizes: Mapping[Any, int]) -> list[_Angles]:
    """The angles at more positions, once for each size that their number follows; ``sizes``: those of ``angles``.

    Positions that repeat, as those of an image's columns do, show only where there are many.
    """
    size = shape(x)[angles.axis]
    found = []
    for symbol in () if isinstance(size, int) else sorted(size.node.expr.free_symbols, key=str):
        many = {**values.smallest(), symbol: values.fitting(symbol, _enough(x, size, symbol, values))}
        many[symbol] = max(many[symbol], sizes[symbol])
        try:
            found.append(_pairs(x, result, values, many))
        except CannotEvaluate:
            continue
    return [item for item in found if item is not None and len(item.ratio) >= len(angles.ratio)] or [angles]


def _enough(x: Node, size: Any, symbol: Any, values: Values) -> int:
    """What ``symbol`` must be for ``size`` to be long, without making ``x`` too large."""
    count = 2
    while count < _MOST:
        sizes = {**values.smallest(), symbol: 2 * count}
        if prod(values.number(other, sizes) for other in shape(x)) > _MOST:
            break
        count *= 2
        if values.number(size, sizes) >= _LONG:
            break
    return count


def _agreed(measured: list[_Angles]) -> torch.Tensor | None:
    """The frequencies that every measurement gives, None if one has none or another."""
    found = [_frequencies(angles) for angles in measured]
    first = found[0]
    if first is None or any(other is None or not torch.allclose(first, other, atol=_EXACT) for other in found):
        return None
    return max(zip(measured, found, strict=True), key=lambda pair: len(pair[0].ratio))[1]


def _frequencies(angles: _Angles) -> torch.Tensor | None:
    """Angle by which each pair turns from one position to the next, None if it is not the same everywhere."""
    ratio = angles.ratio / angles.length
    count = ratio.shape[0]
    if count < 2:
        return None
    frequencies = (ratio[1] / ratio[0]).angle()
    step = 1
    while step < count:
        error = (ratio[step] / ratio[0] * torch.polar(torch.ones_like(frequencies), -step * frequencies)).angle()
        frequencies = frequencies + error / step
        step *= 2
    positions = torch.arange(count, dtype=torch.float64)[:, None]
    wanted = ratio[0] * torch.polar(torch.ones(count, len(frequencies), dtype=torch.float64), positions * frequencies)
    return frequencies if float((ratio - wanted).abs().max()) < 5 * _EXACT else None


def _start(angles: _Angles, frequencies: torch.Tensor) -> int | None:
    """The position of the first row."""
    ratio = angles.ratio[0] / angles.length
    slowest = int(frequencies.argmin())
    start = round(float(ratio[slowest].angle() / frequencies[slowest]))
    wanted = torch.polar(torch.ones_like(frequencies), start * frequencies)
    return start if float((ratio - wanted).abs().max()) < 1e-4 else None


def _offset(result: Node, values: Values, starts: list[tuple[Mapping[Any, int], Any]]) -> Any:
    """The first position as a number or as the node of a size, which must hold for every trial."""
    if len({start for _, start in starts}) == 1:
        return starts[0][1]
    seen: set[Node] = set()
    stack = [result]
    while stack:
        node = stack.pop()
        if node in seen or node.op != "call_function":
            continue
        seen.add(node)
        if isinstance(node.meta.get("val"), torch.SymInt) and not traits_of(node).read:
            if all(values.number(node.meta["val"], sizes) == start for sizes, start in starts):
                return node
        stack.extend(item for item in node.all_input_nodes if item in values.static or ndim(item) < 0)
        stack.extend(item for item in node.all_input_nodes if item not in seen and item not in values.static)
        if len(seen) > 400:
            break
    return None


def _base(frequencies: torch.Tensor, dims: int) -> tuple[float | None, float]:
    """Base and scale that give the frequencies, or None."""
    count = len(frequencies)
    first, last = float(frequencies[0]), float(frequencies[-1])
    scale = 1.0 if math.isclose(first, 1.0, rel_tol=1e-6) else first
    if abs(1 / scale - round(1 / scale)) < 1e-5 / scale:
        scale = 1 / round(1 / scale)
    if count == 1:
        return 10000.0, scale
    base = (first / last) ** (dims / (2 * (count - 1)))
    for candidate in (float(round(base, -1)), float(round(base)), float(f"{base:.7g}")):
        if candidate <= 0:
            continue
        wanted = scale * candidate ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
        if float(((frequencies - wanted) / wanted).abs().max()) < 2e-6:
            return candidate, scale
    return None, 1.0
