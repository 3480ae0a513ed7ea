"""Load a port: its own source runs, with its own weights."""

from __future__ import annotations

from pathlib import Path

import mlx.nn as nn

from mlxport.errors import SourceError
from mlxport.graph.write.execute_source import load_folder

__all__ = ["load_port"]


def load_port(folder: Path) -> nn.Module:
    """The module of a port's folder.

    Raises:
        SourceError: It has no source, or does not load.
    """
    if not (folder / "model.py").is_file():
        raise SourceError(f"{folder} has no model.py, which its config names", hint="port it again")
    try:
        return load_folder(folder)
    except Exception as error:  # the folder's own code and files, whatever is wrong with them
        raise SourceError(
            f"{folder} does not load: {type(error).__name__}: {error}", hint="port it again, or restore its files"
        ) from error
