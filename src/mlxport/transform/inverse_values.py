"""A traced map read backwards, as another map: each checkpoint tensor by rows, from what an output stores.

``invert`` gives the same for arrays, by calculus; here nothing is computed but what moves elements back, so that what
was moved only comes back bit for bit, and a tensor that lies in one piece in a file is that piece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import mlx.core as mx

from mlxport.transform.dtypes import mx_dtype
from mlxport.transform.invert import NotInvertible
from mlxport.transform.program import Call, Program, Value
from mlxport.types import DTYPE_BITS, QuantSpec, TensorRef

__all__ = ["as_type", "dequantized", "inverse_values", "stored_value"]

_DIGITS = "Reshape", "Flatten", "Unflatten", "ExpandDims", "Squeeze"
_SHIFTS = {"Add": "Subtract", "Multiply": "Divide"}  # and what undoes them


def stored_value(ref: TensorRef) -> Value:
    """A tensor of a file as a value."""
    return Value(ref.shape, mx_dtype(ref), leaf=ref)


def dequantized(weight: TensorRef, scales: TensorRef, biases: TensorRef | None, spec: QuantSpec) -> Value:
    """The weights that a quantized triple stands for, float32: [..., columns] of packed [..., columns · bits / 32]."""
    parts = tuple(stored_value(ref) for ref in (weight, scales, biases) if ref is not None)
    shape = (*weight.shape[:-1], weight.shape[-1] * 32 // spec.bits)
    return Value(shape, mx.float32, call=Call("Dequantize", parts, (spec.mode, spec.bits, spec.group_size)))


def inverse_values(program: Program, stored: Mapping[str, Value]) -> dict[str, Value]:
    """How each checkpoint tensor is computed of what ``program`` makes of it.

    Holds for maps that move elements (rename, stack, split, transpose, pad), shift or scale them by constants, or cast
    them. A cast is not undone: elements keep the dtype that they are stored in.

    Args:
        program: A traced one that quantizes nothing.
        stored: Its outputs, as they are stored, by name.

    Returns:
        Tensor of the checkpoint to its value; those that no output needs are absent.

    Raises:
        NotInvertible: An output is computed in another way, or does not hold all of a tensor.
    """
    pieces: dict[int, list[_Piece]] = {}
    for name, value in stored.items():
        origin = program.outputs[name].value
        if origin is None:
            raise NotInvertible(f"{name} is computed by operations that the trace could not follow")
        pieces.setdefault(id(origin), []).append(_Piece.whole(value))
    found: dict[str, Value] = {}
    for node in _consumers_first([program.outputs[name].value for name in stored]):
        if id(node) not in pieces or not node.leaves():
            continue
        value = _joined(node, pieces.pop(id(node)))
        if node.leaf is not None:
            found[node.leaf.name] = value
            continue
        for source, piece in _undone(node, value):
            pieces.setdefault(id(source), []).append(piece)
    return found


@dataclass(frozen=True)
class _Piece:
    """A part of a value that is known: ``ranges`` has start, stop and step along each axis."""

    ranges: tuple[tuple[int, int, int], ...]
    value: Value

    @classmethod
    def whole(cls, value: Value) -> _Piece:
        return cls(tuple((0, size, 1) for size in value.shape), value)


def _consumers_first(roots: Sequence[Value | None]) -> list[Value]:
    """Every value below ``roots``, each after all that are computed from it."""
    order: list[Value] = []
    done: set[int] = set()
    stack: list[tuple[Value, bool]] = [(root, False) for root in roots if root is not None]
    while stack:
        value, entered = stack.pop()
        if entered:
            order.append(value)
        elif id(value) not in done:
            done.add(id(value))
            stack.append((value, True))
            stack += [(source, False) for source in (value.call.inputs if value.call is not None else ())]
    return order[::-1]


def _undone(node: Value, value: Value) -> list[tuple[Value, _Piece]]:
    """What is known of the inputs of a call once its result is."""
    call = node.call
    assert call is not None
    if call.op not in _INVERSES:
        raise _refused(node, f"goes through {call.op}")
    return _INVERSES[call.op](node, call, value)


def _refused(node: Value, why: str) -> NotInvertible:
    return NotInvertible(f"{node.leaves()[0].name} {why}")


_Undone = list[tuple[Value, _Piece]]


def _one(source: Value, value: Value) -> _Undone:
    return [(source, _Piece.whole(value))]


def _cast(node: Value, call: Call, value: Value) -> _Undone:
    return _one(call.inputs[0], value)


def _shape(node: Value, call: Call, value: Value) -> _Undone:
    (source,) = call.inputs
    return _one(source, _reshaped(value, source.shape))


def _axes(node: Value, call: Call, value: Value) -> _Undone:
    (source,) = call.inputs
    axes = list(call.args[0])
    back = tuple(axes.index(axis) for axis in range(len(axes)))
    return _one(source, Value(source.shape, value.dtype, call=Call("Transpose", (value,), (back,))))


def _slice(node: Value, call: Call, value: Value) -> _Undone:
    begin, end, step = (tuple(bound) for bound in call.args)
    return [(call.inputs[0], _Piece(tuple(zip(begin, end, step, strict=True)), value))]


def _split(node: Value, call: Call, value: Value) -> _Undone:
    (source,) = call.inputs
    indices, axis = call.args
    bounds = (0, *indices, source.shape[axis])
    ranges = [(0, size, 1) for size in source.shape]
    ranges[axis] = (bounds[node.index], bounds[node.index + 1], 1)
    return [(source, _Piece(tuple(ranges), value))]


def _concatenate(node: Value, call: Call, value: Value) -> _Undone:
    (axis, *_), start, parts = call.args, 0, []
    for source in call.inputs:
        ranges = [(0, size, 1) for size in source.shape]
        ranges[axis] = (start, start + source.shape[axis], 1)
        parts.append((source, _Piece.whole(_sliced(value, ranges))))
        start += source.shape[axis]
    return parts


def _pad(node: Value, call: Call, value: Value) -> _Undone:
    source = call.inputs[0]
    axes, low, _ = (tuple(bound) for bound in call.args)
    before = dict(zip(axes, low, strict=True))
    starts = [before.get(axis, 0) for axis in range(len(source.shape))]
    ranges = [(start, start + size, 1) for start, size in zip(starts, source.shape, strict=True)]
    return _one(source, _sliced(value, ranges))


def _negative(node: Value, call: Call, value: Value) -> _Undone:
    return _one(call.inputs[0], Value(value.shape, value.dtype, call=Call("Negative", (value,), ())))


def _arithmetic(node: Value, call: Call, value: Value) -> _Undone:
    """Undo what shifts or scales by a constant, in float32."""
    left, right = call.inputs
    if left.leaves() and right.leaves():
        raise _refused(node, f"goes through {call.op} with another tensor")
    source, constant = (left, right) if left.leaves() else (right, left)
    if call.op in _SHIFTS:
        op, operands = _SHIFTS[call.op], (value, constant)
    elif source is left:  # x − c, x / c
        op, operands = ("Add" if call.op == "Subtract" else "Multiply"), (value, constant)
    elif call.op == "Subtract":  # c − x
        op, operands = "Subtract", (constant, value)
    else:
        raise _refused(node, "is divided by")
    wide = tuple(as_type(operand, mx.float32) for operand in operands)
    result = Value(value.shape, mx.float32, call=Call(op, wide, ()))
    return _one(source, as_type(result, value.dtype))


def _broadcast(node: Value, call: Call, value: Value) -> _Undone:
    """Of what is repeated the first."""
    (source,) = call.inputs
    given = (1,) * (len(value.shape) - len(source.shape)) + source.shape
    first = _sliced(value, [(0, min(size, kept), 1) for size, kept in zip(value.shape, given, strict=True)])
    return _one(source, _reshaped(first, source.shape))


def _gather(node: Value, call: Call, value: Value) -> _Undone:
    """Undo an order of rows that a constant gives."""
    table, index = call.inputs
    if index.constant is None or len(index.shape) != 1 or list(call.args[0]) != [0]:
        raise _refused(node, "is looked up in")
    rows: Any = index.constant.tolist()
    order = [int(row) % table.shape[0] for row in rows]
    if {*order} != {*range(table.shape[0])}:
        raise _refused(node, "is taken in part only")
    back = mx.array([order.index(row) for row in range(table.shape[0])], dtype=mx.uint32)
    constant = Value(back.shape, back.dtype, constant=back)
    return _one(table, Value(table.shape, value.dtype, call=Call("Gather", (value, constant), call.args)))


_INVERSES: Mapping[str, Callable[[Value, Call, Value], _Undone]] = {
    "AsType": _cast,
    **dict.fromkeys(_DIGITS, _shape),
    "Transpose": _axes,
    "Slice": _slice,
    "Split": _split,
    "Concatenate": _concatenate,
    "Pad": _pad,
    "Negative": _negative,
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Divide"), _arithmetic),
    "Broadcast": _broadcast,
    "Gather": _gather,
}
"""Operation to what is known of its inputs once its result is."""


def as_type(value: Value, dtype: mx.Dtype) -> Value:
    """``value`` in another dtype."""
    return value if value.dtype == dtype else Value(value.shape, dtype, call=Call("AsType", (value,), ()))


def _reshaped(value: Value, shape: tuple[int, ...]) -> Value:
    """Another shape in the same order; of a tensor in one piece that piece, of a quantized one that of its parts."""
    if value.shape == shape:
        return value
    if value.leaf is not None and value.leaf.as_stored:
        return stored_value(replace(value.leaf, shape=shape))
    call = value.call
    if call is not None and call.op == "Dequantize" and shape and shape[-1] == value.shape[-1]:
        parts = tuple(_reshaped(part, (*shape[:-1], part.shape[-1])) for part in call.inputs)
        return Value(shape, value.dtype, call=replace(call, inputs=parts))
    if call is not None and call.op in _DIGITS:
        return _reshaped(call.inputs[0], shape)
    return Value(shape, value.dtype, call=Call("Reshape", (value,), (shape,)))


def _sliced(value: Value, ranges: Sequence[tuple[int, int, int]]) -> Value:
    """A range along each axis; of rows of a tensor in one piece that piece, of a quantized one those of its parts."""
    if all(bounds == (0, size, 1) for bounds, size in zip(ranges, value.shape, strict=True)):
        return value
    shape = tuple(-(-(stop - start) // step) for start, stop, step in ranges)
    (start, stop, step), rest = ranges[0], ranges[1:]
    rows_only = step == 1 and all(bounds == (0, size, 1) for bounds, size in zip(rest, value.shape[1:], strict=True))
    if rows_only and value.leaf is not None and value.leaf.as_stored and value.leaf.held is None:
        ref = value.leaf
        row = prod(ref.shape[1:]) * DTYPE_BITS[ref.dtype] // 8
        part = replace(ref, name=f"{ref.name}[{start}:{stop}]", shape=shape, offset=ref.offset + start * row)
        return stored_value(part)
    call = value.call
    if rows_only and call is not None and call.op == "Dequantize":
        parts = tuple(_sliced(p, [(start, stop, 1), *((0, size, 1) for size in p.shape[1:])]) for p in call.inputs)
        return Value(shape, value.dtype, call=replace(call, inputs=parts))
    bounds = tuple(zip(*ranges, strict=True))
    return Value(shape, value.dtype, call=Call("Slice", (value,), bounds))


def _joined(node: Value, pieces: Sequence[_Piece]) -> Value:
    """A value of its pieces."""
    whole = _Piece.whole(node).ranges
    for piece in pieces:
        if piece.ranges == whole:
            return piece.value
    return _tiled(node, pieces, 0)


def _tiled(node: Value, pieces: Sequence[_Piece], axis: int) -> Value:
    """Pieces that differ along ``axis`` and those after it, joined."""
    if axis == len(node.shape):
        return pieces[0].value
    groups: dict[tuple[int, int, int], list[_Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.ranges[axis], []).append(piece)
    size, steps = node.shape[axis], {step for _, _, step in groups}
    if (0, size, 1) in groups:
        return _tiled(node, groups[0, size, 1], axis + 1)
    if steps == {1}:
        parts, end = [], 0
        for start, stop, step in sorted(groups):
            if start == end:
                parts.append(_tiled(node, groups[start, stop, step], axis + 1))
                end = stop
        if end == size:
            return _concatenated(parts, axis)
    elif len(steps) == 1 and {start for start, _, _ in groups} == {*range(step := next(iter(steps)))}:
        parts = [_tiled(node, groups[bounds], axis + 1) for bounds in sorted(groups)]
        if size % step == 0 and all(part.shape[axis] == size // step for part in parts):
            apart = [_reshaped(part, (*part.shape[: axis + 1], 1, *part.shape[axis + 1 :])) for part in parts]
            together = _concatenated(apart, axis + 1)
            return _reshaped(together, (*parts[0].shape[:axis], size, *parts[0].shape[axis + 1 :]))
    raise _refused(node, "is not wholly in the output: a part of it was dropped")


def _concatenated(parts: Sequence[Value], axis: int) -> Value:
    first = parts[0]
    if any(part.dtype != first.dtype for part in parts):
        parts = [as_type(part, mx.float32) for part in parts]
    shape = list(first.shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return Value(tuple(shape), parts[0].dtype, call=Call("Concatenate", tuple(parts), (axis,)))
