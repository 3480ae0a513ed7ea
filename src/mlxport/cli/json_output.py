"""What the commands print besides tables: data on standard output, everything else on standard error."""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from typing import Any

import typer

from mlxport.printable import printable, write_generated

__all__ = [
    "escape_what_has_no_letter",
    "finish_stdout",
    "is_about_output",
    "nothing_more_to_stdout",
    "print_json",
    "stream",
    "warn",
]


_OURS = (__name__, write_generated.__module__)


def stream(text: str) -> None:
    """Write what a model generates to standard output at once."""
    write_generated(text, sys.stdout)


def warn(message: str) -> None:
    """A line on standard error."""
    typer.echo(f"warning: {printable(message)}", err=True)


def print_json(data: dict[str, Any] | list[Any]) -> None:
    """One JSON value on standard output: an object, or a list of results."""
    typer.echo(json.dumps(_finite(data), indent=2, allow_nan=False))


def escape_what_has_no_letter() -> None:
    """Let characters that the terminal's encoding lacks, and bytes of names that are no text, be shown as escapes."""
    for out in (sys.stdout, sys.stderr):
        if hasattr(out, "reconfigure"):
            out.reconfigure(errors="backslashreplace")


def finish_stdout() -> None:
    """Write what standard output still holds, while an error of that can be told."""
    sys.stdout.flush()


def is_about_output(error: OSError) -> bool:
    """Whether what failed is printing: here, or in the libraries that print."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = str(frames[-1].f_globals.get("__name__")) if frames else ""
    return error.filename is None and (module in _OURS or module.partition(".")[0] in ("rich", "typer"))


def nothing_more_to_stdout() -> None:
    """Let what is still to be written to standard output be lost: the end of the program does not fail at it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
