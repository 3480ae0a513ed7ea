"""The library that has the models of pipelines: an extra of mlxport, for converting only."""

from __future__ import annotations

import importlib
from typing import Any

from mlxport.errors import UnsupportedError

__all__ = ["needed_diffusers"]


def needed_diffusers(where: str) -> Any:
    """The module ``diffusers``.

    Args:
        where: What it is to read, for the error.

    Raises:
        UnsupportedError: It is not installed, or does not load.
    """
    try:
        return importlib.import_module("diffusers")
    except Exception as error:  # a library that does not fit others that are installed fails in its own ways
        absent = isinstance(error, ModuleNotFoundError) and error.name == "diffusers"
        what = "is not installed" if absent else f"does not load: {type(error).__name__}: {error}"
        raise UnsupportedError(
            f"{where} is captured with diffusers, which {what}", hint="pip install 'mlxport[diffusion]'"
        ) from error
