"""A function with an options object, as one with a keyword for each of its fields: signature, description, errors."""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, Concatenate, ParamSpec, TypeVar

from mlxport.options.option_field import Option, declared

__all__ = ["with_keywords"]

A = TypeVar("A")
B = TypeVar("B")
Options = TypeVar("Options")
Result = TypeVar("Result")
P = ParamSpec("P")
_WIDTH = 120


def with_keywords(
    kind: Callable[P, Options],
) -> Callable[[Callable[[A, B, Options], Result]], Callable[Concatenate[A, B, P], Result]]:
    """Let a function whose third parameter is an object of ``kind`` be called with that class's keywords instead.

    In its docstring the line ``options: …`` gives way to one for each of them.
    """
    known = declared(kind)

    def decorate(function: Callable[[A, B, Options], Result]) -> Callable[Concatenate[A, B, P], Result]:
        signature = _signature(function, known)
        name = function.__name__

        @functools.wraps(function)
        def call(*args: Any, **keywords: Any) -> Result:
            for keyword in keywords.keys() - signature.parameters.keys():
                raise TypeError(f"{name}() got an unexpected keyword argument {keyword!r}; {_nearest(keyword, known)}")
            try:
                bound = signature.bind(*args, **keywords).arguments
            except TypeError as error:
                raise TypeError(f"{name}(): {error}") from None
            given = {item.name: bound.pop(item.name) for item in known if item.name in bound}
            return function(*bound.values(), kind(**given))  # type: ignore[call-arg]

        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__annotations__ = {item.name: item.annotation for item in signature.parameters.values()}
        call.__annotations__["return"] = signature.return_annotation
        call.__doc__ = _docstring(function.__doc__ or "", known)
        return call  # type: ignore[return-value]

    return decorate


def _signature(function: Callable[..., Any], known: Sequence[Option]) -> inspect.Signature:
    """That of ``function``, with a keyword for each option in place of its third parameter."""
    own = inspect.signature(function)
    keywords = [
        inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=item.annotation)
        for item in known
    ]
    return own.replace(parameters=[*list(own.parameters.values())[:2], *keywords])


def _nearest(keyword: str, known: Sequence[Option]) -> str:
    """Which option may have been meant: by its name, or by how the command line spells it."""
    spelled = {flag.lstrip("-").replace("-", "_"): item.name for item in known for flag in item.flags}
    spelled |= {item.name: item.name for item in known}
    (found,) = get_close_matches(keyword, spelled, n=1, cutoff=0.0)
    return f"did you mean {spelled[found]!r}?"


def _docstring(text: str, known: Sequence[Option]) -> str:
    """``text`` with the lines of the options in place of that of ``options``."""
    lines = text.splitlines()
    (place,) = (index for index, line in enumerate(lines) if line.strip().startswith("options:"))
    indent = lines[place][: -len(lines[place].lstrip())]
    described = [line for item in known for line in _described(item, indent)]
    return "\n".join([*lines[:place], *described, *lines[place + 1 :]])


def _described(item: Option, indent: str) -> list[str]:
    text = f"{item.name}: {item.doc}"
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}    ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
