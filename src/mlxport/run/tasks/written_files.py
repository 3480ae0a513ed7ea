"""The files that a task writes what it gives to."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mlxport.errors import UsageError

__all__ = ["target_file"]


def target_file(flag: str, given: str, example: str, endings: Collection[str] = ()) -> Path:
    """Where a file is to be written.

    Args:
        flag: The option that named it.
        given: What was given.
        example: A name that will do.
        endings: What its name may end in; any, if there are none.

    Raises:
        UsageError: It cannot be there.
    """
    path = Path(given).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "lies in no folder that exists"
        raise UsageError(f"{flag} {given} {what}", hint=f"give the name of a file, as {example}")
    if endings and path.suffix.lower() not in endings:
        raise UsageError(f"{flag} {given} does not end in {', '.join(endings)}", hint=f"name it as {example}")
    return path
