"""Libraries that only some tasks need."""

from __future__ import annotations

import importlib
from typing import Any

from mlxport.errors import UsageError

__all__ = ["needed"]


def needed(module: str, extra: str, what: str) -> Any:
    """A module of an optional library.

    Args:
        module: Its name.
        extra: The extra of mlxport that brings it.
        what: What it is needed for, at the head of a sentence.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = f"pip install 'mlxport[{extra}]'"
        raise UsageError(f"{what} needs {module.partition('.')[0]}, which is not installed", hint=hint) from error
