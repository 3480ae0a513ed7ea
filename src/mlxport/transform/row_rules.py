"""How each MLX primitive that weight maps use is computed for a range of rows of its output.

One entry per primitive: ``rows(ev, value, start, stop)`` returns rows [start, stop) of ``value`` along axis 0, asking
the evaluator only for the rows of its inputs that it needs; ``accepts`` refuses arguments that it does not honour.
Names and arguments are those that ``mx.export_function`` reports to its callback (mlx/export.cpp).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import mlx.core as mx

from mlxport.transform.program import Call, Value


class RowSource(Protocol):
    """What a row rule may ask of the evaluator."""

    def rows(self, value: Value, start: int, stop: int) -> mx.array:
        """Rows [start, stop) of ``value``."""

    def full(self, value: Value) -> mx.array:
        """The whole of ``value``."""

    def columns(self, value: Value, axis: int, start: int, stop: int) -> mx.array:
        """The range [start, stop) of ``value`` along ``axis``."""

    def cast(self, array: mx.array, dtype: mx.Dtype) -> mx.array:
        """``array`` as ``dtype`` (or left wider, when inverting)."""


RowRule = Callable[[RowSource, Value, int, int], mx.array]


@dataclass(frozen=True)
class RowOp:
    """A primitive's row rule, the arguments it honours, and whether it only moves, scales or shifts elements."""

    rows: RowRule
    accepts: Callable[[Call, Value], bool] = lambda call, value: True
    linear: bool = False


ROW_OPS: dict[str, RowOp] = {}


def register(name: str, op: RowOp) -> None:
    """Add a primitive; registering one twice raises ValueError."""
    if name in ROW_OPS:
        raise ValueError(f"primitive {name} is registered twice")
    ROW_OPS[name] = op


def _call(value: Value) -> Call:
    assert value.call is not None
    return value.call


def _elementwise(function: Callable[..., mx.array]) -> RowRule:
    def rows(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
        return function(*(ev.rows(source, start, stop) for source in _call(value).inputs))

    return rows


def _same_shapes(call: Call, value: Value) -> bool:
    return all(source.shape == value.shape for source in call.inputs) and not call.args


for _name, _function, _linear in (
    ("Add", mx.add, True),
    ("Subtract", mx.subtract, True),
    ("Multiply", mx.multiply, True),
    ("Divide", mx.divide, True),
    ("Maximum", mx.maximum, False),
    ("Minimum", mx.minimum, False),
    ("Power", mx.power, False),
    ("Negative", mx.negative, True),
    ("Exp", mx.exp, False),
    ("Square", mx.square, False),
    ("Abs", mx.abs, False),
    ("Sigmoid", mx.sigmoid, False),
    ("Tanh", mx.tanh, False),
    ("Full", lambda x: x, True),
    ("Select", mx.where, False),
    ("Greater", mx.greater, False),
    ("GreaterEqual", mx.greater_equal, False),
    ("Less", mx.less, False),
    ("LessEqual", mx.less_equal, False),
):
    register(_name, RowOp(_elementwise(_function), _same_shapes, _linear))

_BITWISE: tuple[Callable[..., mx.array], ...] = (
    mx.bitwise_and,
    mx.bitwise_or,
    mx.bitwise_xor,
    mx.left_shift,
    mx.right_shift,
)
_LOGS: tuple[Callable[..., mx.array], ...] = (mx.log2, mx.log10, mx.log)
_REDUCTIONS: dict[int, Callable[..., mx.array]] = {2: mx.sum, 3: mx.prod, 4: mx.min, 5: mx.max}


def _bitwise(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
    (code,) = _call(value).args
    left, right = (ev.rows(source, start, stop) for source in _call(value).inputs)
    function: Callable[..., mx.array] = _BITWISE[code]
    return function(left, right)


def _sqrt(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
    (reciprocal,) = _call(value).args
    x = ev.rows(_call(value).inputs[0], start, stop)
    return mx.rsqrt(x) if reciprocal else mx.sqrt(x)


def _as_type(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
    return ev.cast(ev.rows(_call(value).inputs[0], start, stop), value.dtype)


def _broadcast(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
    (source,) = _call(value).inputs
    shape = (stop - start, *value.shape[1:])
    if len(source.shape) < len(value.shape) or source.shape[0] != value.shape[0]:
        return mx.broadcast_to(ev.full(source), shape)
    return mx.broadcast_to(ev.rows(source, start, stop), shape)


def _reshape(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
    """Any change of shape that keeps the row-major order: rows of the source that cover the wanted elements."""
    (source,) = _call(value).inputs
    shape = (stop - start, *value.shape[1:])
    if not source.shape or not prod(value.shape):
        return ev.full(source).reshape(shape)
    wide, narrow = prod(value.shape[1:]), prod(source.shape[1:])
    first, last = start * wide // narrow, -(-stop * wide // narrow)
    covering = ev.rows(source, first, last).reshape(-1)
    offset = start * wide - first * narrow
    return covering[offset : offset + (stop - start) * wide].reshape(shape)


def _transpose(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
    (source,) = _call(value).inputs
    axes: Any = _call(value).args[0]
    if axes[0] == 0:
        return ev.rows(source, start, stop).transpose(axes)
    return ev.columns(source, axes[0], start, stop).transpose(axes)


def _slice(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
    (source,) = _call(value).inputs
    begin, end, step = (tuple(x) for x in _call(value).args)
    first = begin[0] + start * step[0]
    rows = ev.rows(source, first, begin[0] + (stop - 1) * step[0] + 1)
    rest = tuple(slice(b, e, s) for b, e, s in zip(begin[1:], end[1:], step[1:], strict=True))
    return rows[(slice(None, None, step[0]), *rest)]


def _forward_slice(call: Call, value: Value) -> bool:
    return bool(value.shape) and all(s > 0 for s in call.args[2])


def _split(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
    (source,) = _call(value).inputs
    indices, axis = _call(value).args
    bounds = (0, *indices, source.shape[axis])
    begin, end = bounds[value.index], bounds[value.index + 1]
    if axis == 0:
        return ev.rows(source, begin + start, begin + stop)
    cut = [slice(None)] * len(source.shape)
    cut[axis] = slice(begin, end)
    return ev.rows(source, start, stop)[tuple(cut)]


def _concatenate(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
    axis: Any = _call(value).args[0]
    if axis:
        return mx.concatenate([ev.rows(source, start, stop) for source in _call(value).inputs], axis=axis)
    pieces, offset = [], 0
    for source in _call(value).inputs:
        first, last = max(start - offset, 0), min(stop - offset, source.shape[0])
        if first < last:
            pieces.append(ev.rows(source, first, last))
        offset += source.shape[0]
    return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=0)


def _pad(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
    source, fill = _call(value).inputs
    axes, low, high = (tuple(x) for x in _call(value).args)
    widths = dict(zip(axes, zip(low, high, strict=True), strict=True))
    before, _ = widths.get(0, (0, 0))
    first, last = max(start - before, 0), min(stop - before, source.shape[0])
    body = ev.rows(source, first, max(first, last))
    top = max(min(before, stop) - start, 0)
    bottom = (stop - start) - top - body.shape[0]
    pads = [(top, bottom), *(widths.get(axis, (0, 0)) for axis in range(1, len(source.shape)))]
    return mx.pad(body, pads, constant_values=ev.full(fill))


def _gather(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
    """Look-up by rows: ``table[index]`` with a small constant table, or a constant index into any value."""
    table, index = _call(value).inputs
    if table.constant is not None:
        return mx.take(ev.full(table), ev.rows(index, start, stop), axis=0).reshape(stop - start, *value.shape[1:])
    assert index.constant is not None
    positions: Any = index.constant.reshape(-1).tolist()
    flat = [int(i) % table.shape[0] for i in positions]
    per_row = prod(index.shape[1:])
    wanted = flat[start * per_row : stop * per_row] if index.shape else flat
    picked = mx.concatenate([ev.rows(table, i, i + 1) for i in wanted], axis=0)
    if not index.shape:
        return picked.reshape(value.shape)[start:stop]
    return picked.reshape(stop - start, *value.shape[1:])


def _simple_gather(call: Call, value: Value) -> bool:
    if len(call.inputs) != 2 or list(call.args[0]) != [0]:
        return False
    table, index = call.inputs
    if tuple(call.args[1]) != (1, *table.shape[1:]):
        return False
    return index.constant is not None or (table.constant is not None and bool(index.shape))


def _reduce(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
    kind, axes = _call(value).args
    return _REDUCTIONS[kind](ev.rows(_call(value).inputs[0], start, stop), axis=tuple(axes), keepdims=True)


def _view(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
    return ev.rows(_call(value).inputs[0], start, stop).view(value.dtype)


def _dequantize(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
    """The float32 weights of a packed triple; scales of linear modes are widened first, so that nothing is rounded."""
    weight, scales, *rest = (ev.rows(source, start, stop) for source in _call(value).inputs)
    mode, bits, group_size = _call(value).args
    biases = rest[0].astype(mx.float32) if rest else None
    scales = scales.astype(mx.float32) if rest else scales
    return mx.dequantize(weight, scales, biases, group_size=group_size, bits=bits, mode=mode, dtype=mx.float32)


def _arange(ev: RowSource, value: Value, start: int, stop: int) -> mx.array:
    begin, end, step = _call(value).args
    return mx.arange(begin, end, step, dtype=value.dtype)[start:stop]


register("BitwiseBinary", RowOp(_bitwise, lambda call, value: all(s.shape == value.shape for s in call.inputs)))
register("Log", RowOp(lambda ev, v, a, b: _LOGS[_call(v).args[0]](ev.rows(_call(v).inputs[0], a, b))))
register("Sqrt", RowOp(_sqrt))
register("AsType", RowOp(_as_type, linear=True))
register("Broadcast", RowOp(_broadcast, lambda call, value: bool(value.shape), linear=True))
for _name in ("Reshape", "Flatten", "Unflatten", "ExpandDims", "Squeeze"):
    register(_name, RowOp(_reshape, lambda call, value: bool(value.shape), linear=True))
register("Transpose", RowOp(_transpose, linear=True))
register("Slice", RowOp(_slice, _forward_slice, linear=True))
register("Split", RowOp(_split, linear=True))
register("Concatenate", RowOp(_concatenate, linear=True))
register("Pad", RowOp(_pad, lambda call, value: bool(value.shape) and all(w >= 0 for x in call.args[1:] for w in x)))
register("Gather", RowOp(_gather, _simple_gather))
register("Reduce", RowOp(_reduce, lambda call, value: call.args[0] in _REDUCTIONS and 0 not in call.args[1]))
register("View", RowOp(_view, lambda call, value: len(value.shape) > 1))
register("Arange", RowOp(_arange))
register("Dequantize", RowOp(_dequantize))  # of ours: MLX exports another name, and by other arguments
