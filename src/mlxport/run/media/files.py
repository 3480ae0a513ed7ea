"""The files that a user gives to a model."""

from __future__ import annotations

import os
from pathlib import Path

from mlxport.errors import UsageError

__all__ = ["readable_file"]


def readable_file(given: str | os.PathLike[str], what: str) -> Path:
    """The path of a file that holds something.

    Args:
        given: What the user gave.
        what: What it is to be, in a word.

    Raises:
        UsageError: There is no such file, it is a folder, or it is empty.
    """
    path = Path(given).expanduser()
    shown = os.fspath(given)[:200]
    if not os.path.lexists(path):
        remote = shown.startswith(("http://", "https://"))
        hint = "fetch it first, and give the file" if remote else f"give the path of a {what} file"
        raise UsageError(f"{shown}: no such file", hint=hint)
    if not os.path.isfile(path):
        hint = f"give the path of a {what} file; several may follow each other"
        raise UsageError(f"{shown} is not a file", hint=hint)
    if path.stat().st_size == 0:
        raise UsageError(f"{shown} is empty", hint=f"give a {what} file that holds something")
    return path
