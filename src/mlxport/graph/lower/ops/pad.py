"""Padding in all modes; negative widths crop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import pad as helper
from mlxport.graph.lower.registry import call, channels_last

_MODES = {"constant": "constant", "replicate": "edge", "reflect": "reflect", "circular": "circular"}


def _widths(pad: Sequence[Any], ndim: int, last: bool) -> list[tuple[Any, Any]]:
    """A (before, after) pair for each axis; torch begins with the last axis. ``last``: the channels are there."""
    pairs = [(pad[index], pad[index + 1]) for index in range(0, len(pad), 2)]
    widths = [(0, 0)] * (ndim - len(pairs)) + pairs[::-1]
    if last and ndim > 1:
        widths.append(widths.pop(1))
    return widths


def padded(x: Expr, widths: list[tuple[Any, Any]], mode: str, value: Any = None) -> Expr:
    """``x`` with ``widths`` added to, or cut from, its axes."""
    if not all(isinstance(width, int) for pair in widths for width in pair):
        if mode == "constant":
            return call(helper.pad_or_crop, x, widths, *([value] if value else []))
        return call(helper.pad_by_index, x, widths, mode)
    negative = any(width < 0 for pair in widths for width in pair)
    if mode in ("reflect", "replicate") and negative:
        return call(helper.pad_by_index, x, widths, mode)
    if negative:
        cut = tuple(slice(-before if before < 0 else None, after if after < 0 else None) for before, after in widths)
        x = x[cut]
        widths = [(max(before, 0), max(after, 0)) for before, after in widths]
    if not any(width for pair in widths for width in pair):
        return x
    if mode == "circular":
        return call(helper.pad_by_index, x, widths, "circular")
    if mode != "constant":
        return mx.pad(x, widths, mode=_MODES[mode])
    if not value:
        return mx.pad(x, widths)
    return mx.pad(x, widths, constant_values=mx.array(value, x.dtype) if _narrower(x, value) else value)


def _narrower(x: Expr, value: Any) -> bool:
    """Whether the value would widen the dtype of ``x``."""
    return isinstance(value, float) and not mx.issubdtype(x.dtype, mx.inexact).value


def _register(keys: dict[str, str], argument: str) -> None:
    for key, mode in keys.items():

        def first(self: Expr, mode: str = mode, **bound: Any) -> Expr:
            return padded(self, _widths(bound[argument], self.ndim, False), mode, bound.get("value"))

        def last(self: Expr, mode: str = mode, **bound: Any) -> Expr:
            return padded(self, _widths(bound[argument], self.ndim, True), mode, bound.get("value"))

        channels_last(key, inputs=("self",), plain=first)(last)


_register({"aten.constant_pad_nd.default": "constant", "aten._pad_circular.default": "circular"}, "pad")
_register({"aten.pad.default": "constant"}, "pad")
_register({f"aten.reflection_pad{rank}d.default": "reflect" for rank in (1, 2, 3)}, "padding")
_register({f"aten.replication_pad{rank}d.default": "replicate" for rank in (1, 2, 3)}, "padding")


@channels_last("aten._pad_enum.default", inputs=("self",))
def pad_enum(self: Expr, pad: Sequence[Any], mode: int, value: float | None = None) -> Expr:
    """Padding with the mode as a number."""
    name = ("constant", "reflect", "replicate", "circular")[mode]
    return padded(self, _widths(pad, self.ndim, True), name, value)
