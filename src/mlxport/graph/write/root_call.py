"""How the root of a port is called: its ``__call__`` as text, under the names that its callers know."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["RootCall", "call_lines"]


@dataclass(frozen=True)
class RootCall:
    """The root's call.

    Attributes:
        parameters: As they are written, ``self`` among them.
        before: Statements that come before the root's own.
        renamed: What the body calls a parameter whose name the code of a port uses itself (``mx_``), to the name that
            callers give it by (``mx``).
    """

    parameters: str
    before: Sequence[str] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)


def call_lines(call: RootCall, statements: Sequence[str]) -> list[str]:
    """The method, and one more behind it where its body needs what a parameter's name hides."""
    body = [*call.before, *statements] or ["pass"]
    if not call.renamed:
        return _method("__call__", call.parameters, body)
    tree = ast.parse("\n".join(body))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    hidden = {own: name for own, name in call.renamed.items() if name in used}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in hidden:
            node.id = call.renamed.get(node.id, node.id)
    body = ast.unparse(tree).splitlines()
    if not hidden:
        return _method("__call__", call.parameters, body)
    outer = _arguments(call.parameters)
    inner = _arguments(call.parameters)
    own = {name: mine for mine, name in hidden.items()}
    for argument in _each(inner):
        argument.arg = own.get(argument.arg, argument.arg)
    handed_on = f"return self.forward({', '.join(_given(outer, own))})"
    return [
        *_method("__call__", call.parameters, [handed_on]),
        "",
        *_method("forward", ast.unparse(inner), body),
    ]


def _method(name: str, parameters: str, body: Sequence[str]) -> list[str]:
    return [f"def {name}({parameters}):", *textwrap.indent("\n".join(body), "    ").splitlines()]


def _arguments(parameters: str) -> ast.arguments:
    (function,) = ast.parse(f"def call({parameters}): pass").body
    assert isinstance(function, ast.FunctionDef)
    return function.args


def _each(arguments: ast.arguments) -> list[ast.arg]:
    starred = [item for item in (arguments.vararg, arguments.kwarg) if item is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *starred]


def _given(arguments: ast.arguments, own: Mapping[str, str]) -> list[str]:
    """The arguments that hand on those of a method to one that calls them by its ``own`` names."""
    by_place = [item.arg for item in [*arguments.posonlyargs, *arguments.args][1:]]
    starred = [f"*{arguments.vararg.arg}"] if arguments.vararg is not None else []
    return [*by_place, *starred, *(f"{own.get(item.arg, item.arg)}={item.arg}" for item in arguments.kwonlyargs)]
