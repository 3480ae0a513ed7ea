r"""What comes from a checkpoint, a folder or the command line, made fit for a terminal. All that is printed is.

A name, a setting or a token may hold an escape sequence that moves the cursor, changes the window's title or paints
over what was said, or a megabyte of text. Such characters become ``\x1b`` and the like, and what is too long is cut.
"""

from __future__ import annotations

import re
from typing import IO

__all__ = ["printable", "words", "write_generated"]

_LINE, _WHOLE = 1_000, 8_000
_KEPT = "\n\t"
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ESCAPES = re.compile(r"[\x1b\x80-\x9f]")  # what sequences begin with


def printable(text: str, *, line: int = _LINE, whole: int = _WHOLE) -> str:
    r"""``text`` with what cannot be printed spelled out (``\x1b``), each line and the whole no longer than given.

    Of what is too long the middle is left out: the cause is often said last.
    """
    text = _shortened(text, whole)
    if text.isprintable() and len(text) <= line:
        return text
    return "\n".join(_shortened(_spelled(one), line) for one in text.split("\n"))


def words(error: BaseException) -> str:
    """What an exception says; one of a user's own class may fail to say it."""
    try:
        return str(error)
    except Exception as failure:
        return f"(its __str__ raises {type(failure).__name__})"


def write_generated(text: str, out: IO[str]) -> None:
    """Write what a model generates at once: all of it as it is but escapes, and on a terminal other control characters.

    Escapes never: what is piped or kept is read on a terminal later. ``--json`` has the text to the letter.
    """
    spelled = _CONTROLS if out.isatty() else _ESCAPES
    out.write(spelled.sub(lambda found: repr(found.group())[1:-1], text))
    out.flush()


def _spelled(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in _KEPT else repr(char)[1:-1] for char in text)


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    kept = most // 4  # at the end
    return f"{text[: most - kept]} … ({len(text):,} characters) … {text[-kept:]}"
