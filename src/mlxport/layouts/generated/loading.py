"""Load a port: its own source runs, with its own weights, once it is sure whose source that is."""

from __future__ import annotations

from pathlib import Path

import mlx.nn as nn

from mlxport.errors import SourceError
from mlxport.graph.write.execute_source import execute
from mlxport.source.safe_files import refuse_special_files
from mlxport.source.written_code import source_to_run
from mlxport.transform.cpu_experts import half_precision_experts

__all__ = ["check_source", "load_port"]


def check_source(folder: Path, trust_remote_code: bool) -> bytes:
    """The source of a port, if it may run. Nothing else of the folder can: it is executed as it stands, not imported.

    Raises:
        UnsafeError: This installation did not write it, and it is not trusted.
        SourceError: It is not there.
    """
    if not (folder / "model.py").exists():
        raise SourceError(f"{folder} has no model.py, which its config names", hint="port it again")
    refuse_special_files(folder)
    return source_to_run(folder / "model.py", trust_remote_code)


def load_port(folder: Path, *, trust_remote_code: bool = False) -> nn.Module:
    """The module of a port's folder.

    Raises:
        UnsafeError: This installation did not write its source, and it is not trusted.
        SourceError: It has no source, or does not load.
    """
    source = check_source(folder, trust_remote_code)
    half_precision_experts()
    try:
        model: nn.Module = execute(source.decode(), str(folder / "model.py")).load(folder)
        return model
    except Exception as error:  # the folder's own code and files, whatever is wrong with them
        raise SourceError(
            f"{folder} does not load: {type(error).__name__}: {error}", hint="port it again, or restore its files"
        ) from error
