"""A field of an options class: its default with its help, spellings, choices and check, so that each is said once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from mlxport.errors import UsageError

__all__ = ["Option", "check_fields", "declared", "in_words", "option", "refined"]

_KEY = "option"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is known of one option.

    Attributes:
        help: One line, for the command line.
        doc: The same for Python, where there is more to say.
        flags: How the command line spells it.
        choices: The values that exist; empty where they cannot be listed.
        check: Raises ``UsageError`` for a value that cannot be; not called for None.
        alone: Whether the flag stands alone before this argument, and so means True; None where a value always follows.
        panel: Heading under which the command line lists it; empty for the first list.
        unset: The command line's default, where that is not Python's.
        in_python_only: Whether the command line leaves it out.
        name: Of the field, and of the keyword in Python; like what follows known once the class is.
        annotation: The field's type, as written.
        default: The field's default.
    """

    help: str
    doc: str
    flags: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    check: Callable[[Any], object] | None = None
    alone: Callable[[str], bool] | None = None
    panel: str = ""
    unset: Any = None
    in_python_only: bool = False
    name: str = ""
    annotation: str = ""
    default: Any = None


def option(
    default: T,
    help: str = "",
    *,
    doc: str = "",
    flags: tuple[str, ...] = (),
    choices: tuple[str, ...] = (),
    check: Callable[[Any], object] | None = None,
    alone: Callable[[str], bool] | None = None,
    panel: str = "",
    unset: Any = None,
    in_python_only: bool = False,
) -> T:
    """A field with its ``Option``, whose attributes the arguments are.

    Args:
        default: The field's default.
        help: Made of ``choices`` if empty.
        doc: ``help`` if empty.
        flags: ``--name`` if empty.
        choices: See ``Option``.
        check: See ``Option``.
        alone: See ``Option``.
        panel: See ``Option``.
        unset: See ``Option``.
        in_python_only: See ``Option``.
    """
    help = help or in_words(choices)
    known = Option(
        help=help, doc=doc or help, flags=flags, choices=choices, check=check, alone=alone, panel=panel, unset=unset,
        in_python_only=in_python_only,
    )  # fmt: skip
    made: T = field(default=default, metadata={_KEY: known})
    return made


def refined(kind: Any, name: str, **changes: Any) -> Any:
    """The field ``name`` of ``kind`` again, for a class derived from it that has something else to say of it."""
    (there,) = (item for item in dataclasses.fields(kind) if item.name == name)
    default = changes.pop("default", there.default)
    return field(default=default, metadata={_KEY: replace(there.metadata[_KEY], **changes)})


def declared(kind: Any) -> tuple[Option, ...]:
    """The options of an options class, or of an object of one, in its order."""
    return _declared(kind if isinstance(kind, type) else type(kind))


@functools.cache
def _declared(kind: Any) -> tuple[Option, ...]:
    found = []
    for item in dataclasses.fields(kind):
        if (known := item.metadata.get(_KEY)) is not None:
            flags = known.flags or (f"--{item.name.replace('_', '-')}",)
            found.append(replace(known, name=item.name, flags=flags, annotation=str(item.type), default=item.default))
    return tuple(found)


def check_fields(options: Any) -> None:
    """Hold every value against its field's choices and check.

    Raises:
        UsageError: A value that does not exist.
    """
    for known in declared(options):
        value = getattr(options, known.name)
        if known.choices and value not in known.choices:
            name = known.name.replace("_", "-")
            raise UsageError(f"--{name} {value!r} does not exist", hint=f"choose one of {', '.join(known.choices)}")
        if known.check is not None and value is not None:
            known.check(value)


def in_words(choices: tuple[str, ...], last: str = "or") -> str:
    """Choices as a sentence: ``a, b or c`` with its period."""
    *head, tail = choices or ("",)
    return f"{', '.join(head)} {last} {tail}." if head else tail
