"""Where a node comes from in the user's source: the statement, the names that it assigns, the line for errors."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node

__all__ = ["Statement", "call_arguments", "frames", "is_users", "module_path", "place", "raised_at", "statement"]

_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+), in (\S+)', re.MULTILINE)
_TORCH = str(Path(torch.__file__).parent)
_PACKAGE = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Statement:
    """A statement of the original source.

    Attributes:
        file: Its file.
        line: Its first line.
        names: What it assigns; empty for other statements.
        computed: Which of several names get values that are computed one after another, as ``a, b = f(x), g(x)`` has
            it; empty where the order in which values are computed does not tell.
    """

    file: str
    line: int
    names: tuple[str, ...]
    computed: tuple[int, ...] = ()


def module_path(node: Node) -> str:
    """Path of the innermost module whose call contains ``node``."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack.values()), ("", ""))[0].partition("@")[0]


def frames(node: Node) -> list[tuple[str, int]]:
    """File and line of each Python frame that led to ``node``, outermost first."""
    return [(file, int(line)) for file, line, _ in _FRAME.findall(node.meta.get("stack_trace") or "")]


def place(node: Node) -> str:
    """``file.py:line`` of the user's model that calls the op, or ``""``."""
    own = [frame for frame in frames(node) if not frame[0].startswith((_TORCH, "<"))]
    return f"{own[-1][0]}:{own[-1][1]}" if own else ""


def is_users(file: str) -> bool:
    """Whether a frame's file is of the user's model: not torch's, nor of this package."""
    return not file.startswith((_TORCH, _PACKAGE, "<"))


def raised_at(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost frame of the user's model in what led to ``error``."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(frame.filename)]
    return own[-1] if own else None


def statement(node: Node, module: torch.nn.Module | None) -> Statement | None:
    """The statement of ``module``'s forward (or of the innermost code that is not torch's) that computes ``node``."""
    own = [frame for frame in frames(node) if not frame[0].startswith("<")]
    cls: Any = type(module)
    if module is not None and (span := _span(cls)):
        file, first, last = span
        inside = [frame for frame in own if frame[0] == file and first <= frame[1] <= last]
        if inside:
            return _lookup(*inside[-1])
    own = [frame for frame in own if not frame[0].startswith(_TORCH)]
    return _lookup(*own[-1]) if own else None


def call_arguments(
    node: Node, caller: torch.nn.Module | None, callee: str, parameters: tuple[str, ...]
) -> dict[str, str]:
    """Variable of the caller to the parameter of the callee that it is given as, from the caller's source.

    Args:
        node: An op inside of the call.
        caller: The module whose forward calls.
        callee: Name of the attribute that is called.
        parameters: Names of the callee's parameters, in order.
    """
    cls: Any = type(caller)
    if caller is None or (span := _span(cls)) is None:
        return {}
    file, first, last = span
    lines = [frame[1] for frame in frames(node) if frame[0] == file and first <= frame[1] <= last]
    if not lines:
        return {}
    calls = [call for start, end, name, call in _calls(file) if start <= lines[-1] <= end and name in (callee, "")]
    named = [call for call in calls if isinstance(call.func, ast.Attribute)] or calls
    if len(named) != 1:
        return {}
    found: dict[str, str] = {}
    given = [*zip(parameters, named[0].args, strict=False), *((k.arg or "", k.value) for k in named[0].keywords)]
    for parameter, value in given:
        while isinstance(value, ast.Subscript | ast.Attribute):
            value = value.value
        if isinstance(value, ast.Name) and parameter in parameters:
            found.setdefault(value.id, parameter)
    return found


@functools.cache
def _nodes(file: str) -> tuple[ast.AST, ...]:
    try:
        return tuple(ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return ()


@functools.cache
def _calls(file: str) -> tuple[tuple[int, int, str, ast.Call], ...]:
    """Calls of attributes, by name, and of plain variables (a module of a loop), under "": first and last line."""
    found = []
    for node in _nodes(file):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            found.append((node.lineno, node.end_lineno or node.lineno, name, node))
    return tuple(found)


@functools.cache
def _span(cls: type) -> tuple[str, int, int] | None:
    function = inspect.unwrap(cls.forward)  # type: ignore[attr-defined]
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    lines = [line for _, _, line in code.co_lines() if line]
    return code.co_filename, code.co_firstlineno, max(lines, default=code.co_firstlineno)


def _lookup(file: str, line: int) -> Statement | None:
    best = None
    for last, made in _statements(file):
        if made.line <= line <= last and (best is None or made.line >= best.line):
            best = made
    return best


@functools.cache
def _statements(file: str) -> tuple[tuple[int, Statement], ...]:
    """All of a file, with the last line of each, in the order in which they begin."""
    found = []
    for node in _nodes(file):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = _names(targets[-1])
            made = Statement(file, node.lineno, names, _computed(node.value, len(names)))
        elif isinstance(node, ast.Return | ast.Expr | ast.Assert):
            made = Statement(file, node.lineno, ())
        else:
            continue
        found.append((node.end_lineno or node.lineno, made))
    return tuple(sorted(found, key=lambda item: (item[1].line, item[0])))


def _names(target: ast.expr) -> tuple[str, ...]:
    match target:
        case ast.Name(id):
            return (id,)
        case ast.Attribute(attr=attr):
            return (attr,)
        case ast.Tuple(elts) | ast.List(elts):
            if any(isinstance(item, ast.Starred) for item in elts):
                return ()
            return tuple(name for item in elts for name in (_names(item) or ("_",))[:1])
    return ()


def _computed(value: ast.expr | None, count: int) -> tuple[int, ...]:
    """See ``Statement.computed``; ``count`` names are assigned."""
    if count < 2:
        return ()
    match value:
        case ast.Tuple(elts) | ast.List(elts) if len(elts) == count:
            return tuple(place for place, item in enumerate(elts) if not isinstance(item, ast.Name | ast.Constant))
        case ast.GeneratorExp() | ast.ListComp() | ast.Call(func=ast.Name("map")):
            return tuple(range(count))
    return ()
