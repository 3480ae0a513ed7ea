"""Where a node comes from in the user's source: the statement, the names that it assigns, the line for errors."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node

__all__ = [
    "Statement", "all_frames", "call_arguments", "calls_in", "frames", "frames_within", "is_users", "loop_depth",
    "loops_around", "module_path", "place", "raised_at", "readable", "statement", "statement_at",
    "statement_line", "whole_traces",
]  # fmt: skip

_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+), in (\S+)', re.MULTILINE)
_TORCH_ITSELF = "torch/__init__.py"
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
    """File and line of each forward that led to ``node``, outermost first."""
    return [frame for frame, function in _frames(node) if function == "forward" or frame[0].endswith(_TORCH_ITSELF)]


def all_frames(node: Node) -> list[tuple[str, int]]:
    """The same with the functions that a forward calls, which ``whole_traces`` keeps; torch's are left out."""
    return [frame for frame, _ in _frames(node) if not frame[0].startswith((_TORCH, "<"))]


def _frames(node: Node) -> list[tuple[tuple[str, int], str]]:
    found = _FRAME.findall(node.meta.get("stack_trace") or "")
    return [((file, int(line)), function) for file, line, function in found]


def frames_within(node: Node, module: torch.nn.Module | None) -> list[tuple[str, int]]:
    """Those of ``all_frames`` from the forward of ``module`` on; all where it is none of them."""
    found = all_frames(node)
    kind: Any = type(module)
    span = None if module is None else _span(kind)
    if span is None:
        return found
    inside = [index for index, (file, line) in enumerate(found) if file == span[0] and span[1] <= line <= span[2]]
    return found[inside[-1] :] if inside else found


@contextmanager
def whole_traces() -> Iterator[None]:
    """Within, nodes are traced through the functions that a forward calls, too, which torch leaves out."""
    base: Any = torch.fx.proxy.TracerBase
    shorter = base._filter_traceback_frames

    def longer(tracer: Any, summary: traceback.StackSummary) -> traceback.StackSummary:
        kept = {id(frame) for frame in shorter(tracer, summary)}
        first = next((index for index, frame in enumerate(summary) if id(frame) in kept), len(summary))
        return traceback.StackSummary.from_list(
            frame
            for index, frame in enumerate(summary)
            if id(frame) in kept or (index > first and not frame.filename.startswith((_TORCH, _PACKAGE, "<")))
        )

    base._filter_traceback_frames = longer
    try:
        yield
    finally:
        base._filter_traceback_frames = shorter


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


def loop_depth(node: Node | None) -> int | None:
    """Which of the frames of ``all_frames`` has the innermost loop."""
    found = [] if node is None else all_frames(node)
    return next((index for index in reversed(range(len(found))) if loops_around(*found[index])), None)


def statement_at(node: Node, depth: int, called: torch.nn.Module | None) -> Statement | None:
    """The statement of one of the frames of ``all_frames``, or of the last that is not in the module ``called``."""
    own = all_frames(node)
    kind: Any = type(called)
    span = None if called is None else _span(kind)
    if span is not None:
        file, first, last = span
        own = own[
            : next((i for i, frame in enumerate(own) if frame[0] == file and first <= frame[1] <= last), len(own))
        ]
    return _lookup(*own[min(depth, len(own) - 1)]) if own else None


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
    calls = [call for start, end, name, call in calls_in(file) if start <= lines[-1] <= end and name in (callee, "")]
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


_LOOPS = (ast.For, ast.While, ast.ListComp, ast.GeneratorExp)


def loops_around(file: str, line: int) -> list[ast.AST]:
    """The loops of a source file that a line stands in, outermost first."""
    return [loop for loop in _loops(file) if loop.lineno <= line <= (loop.end_lineno or loop.lineno)]


@functools.cache
def _loops(file: str) -> tuple[Any, ...]:
    loops: list[Any] = [node for node in _nodes(file) if isinstance(node, _LOOPS)]
    return tuple(sorted(loops, key=lambda loop: (loop.lineno, -(loop.end_lineno or loop.lineno))))


def readable(file: str) -> bool:
    """Whether the source of a file is there."""
    return bool(_nodes(file))


def statement_line(file: str, line: int) -> int:
    """The first line of the statement that a line belongs to."""
    found = _lookup(file, line)
    return line if found is None else found.line


@functools.cache
def _nodes(file: str) -> tuple[ast.AST, ...]:
    try:
        return tuple(ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return ()


@functools.cache
def calls_in(file: str) -> tuple[tuple[int, int, str, ast.Call], ...]:
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
