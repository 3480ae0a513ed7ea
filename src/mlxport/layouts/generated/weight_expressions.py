"""What a traced map does with tensors of a checkpoint, as Python that a ``sanitize`` may have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxport.transform import Call, Value

__all__ = ["NotSpelled", "Spelling", "literal"]

_LONGEST = 1024  # numbers of a table that is written out
_BINARY = {"Add": "+", "Subtract": "-", "Multiply": "*", "Divide": "/"}
_UNARY = {"Negative": "-{}", "Exp": "mx.exp({})", "Square": "mx.square({})", "Abs": "mx.abs({})"}
_RESHAPES = ("Reshape", "Flatten", "Unflatten", "Squeeze", "ExpandDims")


class NotSpelled(Exception):
    """A map that is not written as a ``sanitize``, with the reason."""


@dataclass(frozen=True)
class Spelling:
    """Writes values as expressions.

    Attributes:
        leaf: The expression of a checkpoint's tensor, from its name.
        main: Dtype of most weights: casts to it are left out, so that weights keep the dtype they are stored in.
    """

    leaf: Callable[[str], str]
    main: mx.Dtype

    def __call__(self, value: Value) -> str:
        """``value`` as an expression.

        Raises:
            NotSpelled: It is computed by something that has no spelling here.
        """
        if value.leaf is not None:
            return self.leaf(value.leaf.name)
        if value.constant is not None:
            return literal(value.constant)
        assert value.call is not None
        return self._called(value.call, value)

    def _called(self, call: Call, value: Value) -> str:
        inputs, args = call.inputs, call.args
        match call.op:
            case "AsType":
                return self._cast(inputs[0], value.dtype)
            case "Transpose":
                return f"{self(inputs[0])}.{_moved(args[0])}"
            case "Concatenate":
                return self._joined(call)
            case "Split":
                indices, axis = args
                return f"mx.split({self(inputs[0])}, {list(indices)}, axis={axis})[{value.index}]"
            case "Slice":
                return f"{self(inputs[0])}[{_range(inputs[0].shape, *args)}]"
            case op if op in _RESHAPES:
                return f"{self(inputs[0])}.reshape{tuple(value.shape)}"
            case "Broadcast" if not inputs[0].shape:
                return self(inputs[0])
            case op if op in _BINARY:
                return f"({self(inputs[0])} {_BINARY[op]} {self(inputs[1])})"
            case op if op in _UNARY:
                return _UNARY[op].format(self(inputs[0]))
        raise NotSpelled(f"{call.op} has no spelling")

    def _cast(self, source: Value, dtype: mx.Dtype) -> str:
        floats = mx.issubdtype(dtype, mx.floating) and mx.issubdtype(source.dtype, mx.floating)
        text = self(source)
        return text if floats and dtype == self.main else f"{text}.astype({dtype!s})".replace("mlx.core.", "mx.")

    def _joined(self, call: Call) -> str:
        axis, inputs = call.args[0], call.inputs
        parts = [_without_axis(value) for value in inputs] if axis == 0 else [None]
        if all(part is not None for part in parts):
            return f"mx.stack({_listed([self(part) for part in parts if part is not None])})"
        return f"mx.concatenate({_listed([self(value) for value in inputs])}, axis={axis})"


def literal(array: mx.array) -> str:
    """Numbers written out.

    Raises:
        NotSpelled: There are too many.
    """
    if array.size > _LONGEST:
        raise NotSpelled(f"a table of {array.size} numbers is stored nowhere in it")
    if not array.shape:
        return repr(array.item())
    name = str(array.dtype).replace("mlx.core.", "mx.")
    return f"mx.array({_rounded(array.tolist())}, dtype={name})"


def _rounded(numbers: Any) -> str:
    """Lists of numbers in as few digits as float32 has."""
    if isinstance(numbers, list):
        return f"[{', '.join(map(_rounded, numbers))}]"
    return repr(float(f"{numbers:.9g}")) if isinstance(numbers, float) else repr(numbers)


def _moved(axes: Sequence[int]) -> str:
    moved = [axis for axis, source in enumerate(axes) if axis != source]
    return f"swapaxes({moved[0]}, {moved[1]})" if len(moved) == 2 else f"transpose{tuple(axes)}"


def _range(shape: Sequence[int], begin: Sequence[int], end: Sequence[int], step: Sequence[int]) -> str:
    cuts = []
    for size, first, last, by in zip(shape, begin, end, step, strict=True):
        text = f"{first or ''}:{'' if last == size else last}"
        cuts.append(text if by == 1 else f"{text}:{by}")
    while len(cuts) > 1 and cuts[-1] == ":":
        cuts.pop()
    return ", ".join(cuts)


def _without_axis(value: Value) -> Value | None:
    """What a first axis of one was put before."""
    call = value.call
    return call.inputs[0] if call is not None and call.op == "ExpandDims" and list(call.args[0]) == [0] else None


_INDEX = re.compile(r"(?<=\.)\d+(?=[.\"'])")


def _listed(texts: Sequence[str]) -> str:
    """A list; where its items differ in one index of a name, which counts from 0, by a comprehension."""
    for place in _places(texts[0]):
        template = [f"{text[: m.start()]}#{text[m.end() :]}" for text in texts if (m := _nth(text, place))]
        numbers = [int(m.group()) for text in texts if (m := _nth(text, place))]
        if len(texts) > 1 and len(set(template)) == 1 and numbers == list(range(len(texts))):
            element = re.sub(r"(?<!f)(\"[^\"]*#[^\"]*\")", r"f\1", template[0]).replace("#", "{e}")
            return f"[{element} for e in range({len(texts)})]"
    return f"[{', '.join(texts)}]"


def _places(text: str) -> Iterator[int]:
    return iter(range(len(_INDEX.findall(text))))


def _nth(text: str, place: int) -> re.Match[str] | None:
    return next((match for index, match in enumerate(_INDEX.finditer(text)) if index == place), None)
