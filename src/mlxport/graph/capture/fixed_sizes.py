"""Why a capture fixes a size of an input: the expression of the user's code, or the layer, that decided it."""

from __future__ import annotations

import dis
import inspect
import linecache
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from mlxport.graph.capture.origin import is_users

__all__ = ["SizeDecisions"]

_CALLER = str(Path(__file__).with_name("export.py"))
_LONGEST = 60  # characters of an expression that is quoted whole
_COUNTING = ("range(", "enumerate(", "zip(", "reversed(", "list(", "tuple(")


class SizeDecisions:
    """While it is entered, notes what gives a symbolic size of an input its one value."""

    def __init__(self, module: torch.nn.Module) -> None:
        """Nothing noted yet; ``module`` is the one that is captured."""
        self._paths = {id(part): path for path, part in module.named_modules()}
        self._reasons: dict[sympy.Symbol, str] = {}
        self._environment: ShapeEnv | None = None

    def __enter__(self) -> SizeDecisions:
        """Listen to torch's symbolic shapes; what was noted of an earlier capture is forgotten."""
        self._reasons.clear()
        self._original = ShapeEnv._set_replacement
        original, note = self._original, self._note

        def set_replacement(environment: Any, symbol: Any, value: Any, message: str) -> None:
            note(environment, symbol, value)
            original(environment, symbol, value, message)

        ShapeEnv._set_replacement = set_replacement
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no more."""
        ShapeEnv._set_replacement = self._original

    def _note(self, environment: ShapeEnv, symbol: Any, value: Any) -> None:
        self._environment = environment
        if symbol not in self._reasons and getattr(value, "is_number", False):
            self._reasons[symbol] = _told(sys._getframe(2), self._paths)

    def reasons(self) -> dict[str, str]:
        """What decided each size: torch's name of its place, ``L['x'].size()[1]``, to the reason."""
        if self._environment is None:
            return {}
        places = self._environment.var_to_sources
        return {_name(source): why for symbol, why in self._reasons.items() for source in places.get(symbol, ())}


def _name(source: Any) -> str:
    name = source.name
    return str(name() if callable(name) else name)


def _told(frame: FrameType | None, paths: Mapping[int, str]) -> str:
    """The innermost layer of torch.nn, or else the innermost expression of the user's, that the call came from."""
    layer = ""
    for found in _outwards(frame):
        if is_users(found.f_code.co_filename):
            at = f"{Path(found.f_code.co_filename).name}:{found.f_lineno}"
            return f"{layer}, {at}" if layer else f"{_decision(found)}, {at}"
        owner = found.f_locals.get("self") if found.f_code.co_name == "forward" else None
        if not layer and isinstance(owner, torch.nn.Module) and id(owner) in paths:
            layer = " ".join(filter(None, [type(owner).__name__, paths[id(owner)]]))
    return layer


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames around ``frame``, up to the call of torch.export."""
    while frame is not None and frame.f_code.co_filename != _CALLER:
        yield frame
        frame = frame.f_back


def _decision(frame: FrameType) -> str:
    """What the expression that runs in a frame makes of a size."""
    code = frame.f_code
    first, last, start, end = list(code.co_positions())[frame.f_lasti // 2]
    lines = [linecache.getline(code.co_filename, number) for number in range(first or 0, (last or first or 0) + 1)]
    text = ""
    if lines and start is not None and end is not None:
        encoded = [line.encode() for line in lines]
        encoded[-1] = encoded[-1][:end]
        text = " ".join(b"".join([encoded[0][start:], *encoded[1:]]).decode(errors="replace").split())
    opcode = next((step.opname for step in dis.get_instructions(code) if step.offset == frame.f_lasti), "")
    if opcode in ("GET_ITER", "FOR_ITER") or text.startswith(_COUNTING):
        return f"a loop over it, {_quoted(text)}"
    if text.startswith("int("):
        return f"int() of it, {_quoted(text)}"
    return _quoted(text) if text else inspect.getframeinfo(frame).function


def _quoted(text: str) -> str:
    return f"`{text if len(text) <= _LONGEST else text[: _LONGEST - 2] + ' …'}`"
