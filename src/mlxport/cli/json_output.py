"""What the commands print besides tables: data on standard output, everything else on standard error."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import typer

from mlxport.printable import printable, write_generated

__all__ = ["print_json", "stream", "warn"]


def stream(text: str) -> None:
    """Write what a model generates to standard output at once."""
    write_generated(text, sys.stdout)


def warn(message: str) -> None:
    """A line on standard error."""
    typer.echo(f"warning: {printable(message)}", err=True)


def print_json(data: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    typer.echo(json.dumps(_finite(data), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
