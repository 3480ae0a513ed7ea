"""Questions of values whose answer is known: an ``assert``, or an ``if`` that only raises, held when the module ran.

A capture has no values to answer them with. torch.nn asks one, too: whether a mask is causal, to compute it faster.
"""

from __future__ import annotations

import ast
import functools
import linecache
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mlxport.graph.capture.origin import is_users

__all__ = ["AssertedValues", "masks_as_given"]

_TRUTH = torch.Tensor.__bool__


class AssertedValues(TorchFunctionMode):  # type: ignore[misc]
    """While it is entered, a tensor that is asserted is true.

    Attributes:
        places: Where such a check was passed over.
    """

    def __init__(self) -> None:
        """Nothing passed over yet."""
        super().__init__()
        self.places: dict[str, None] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer a question, or make the call."""
        if func == _TRUTH:
            frame = _asking(sys._getframe(1))
            answer = None if frame is None else _answer(frame)
            if frame is not None and answer is not None:
                self.places[f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"] = None
                return answer
        return func(*args, **(kwargs or {}))

    def note(self) -> str:
        """What is to be said of them; empty if there were none."""
        if not self.places:
            return ""
        return f"what is asserted of values is not checked by the port ({', '.join(self.places)})"


@contextmanager
def masks_as_given() -> Iterator[None]:
    """Let torch.nn's Transformer add every mask as it is given: it is not looked at whether it is the causal one."""
    transformer = torch.nn.modules.transformer
    original = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = original


def _asking(frame: FrameType | None) -> FrameType | None:
    """The frame whose expression is a truth value: the first besides those of function modes, if it is the user's."""
    while frame is not None and frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    return frame if frame is not None and is_users(frame.f_code.co_filename) else None


def _answer(frame: FrameType) -> bool | None:
    """What an expression of a check has to be for it to hold; None where it is not one of a check."""
    position = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    if None in position:
        return None
    first, last, start, end = position
    return _checks(frame.f_code.co_filename).get((first or 0, start or 0, last or 0, end or 0))


@functools.cache
def _checks(file: str) -> dict[tuple[int, int, int, int], bool]:
    """The place of each truth value of a check, and what it has to be."""
    found: dict[tuple[int, int, int, int], bool] = {}
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            known = dict(_held(node.test, True))
        elif isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise) and not node.orelse:
            known = dict(_held(node.test, False))
        else:
            continue
        found.update(known)
        if len(set(known.values())) == 1:  # Python's jumps stand at the place of the statement
            found[_span(node)] = next(iter(known.values()))
    return found


def _held(test: ast.expr, wanted: bool) -> Iterator[tuple[tuple[int, int, int, int], bool]]:
    """The truth values that ``test`` consists of, where each is known if the whole is."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from _held(test.operand, not wanted)
    elif isinstance(test, ast.BoolOp):
        if isinstance(test.op, ast.And) is wanted:
            for part in test.values:
                yield from _held(part, wanted)
    else:
        yield _span(test), wanted
        if isinstance(test, ast.Call) and getattr(test.func, "id", "") == "bool" and len(test.args) == 1:
            yield from _held(test.args[0], wanted)


def _span(node: ast.expr | ast.stmt) -> tuple[int, int, int, int]:
    return node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0
