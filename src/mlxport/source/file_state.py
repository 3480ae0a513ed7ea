"""What tells one content of a file from another without reading it, and which files of a checkpoint changed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mlxport.types import Checkpoint, FileState

__all__ = ["changed_files", "state_of", "states_of"]


def state_of(path: Path) -> FileState | None:
    """The state of the file that a path names, through links; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return FileState(status.st_size, status.st_mtime_ns, status.st_ctime_ns, (status.st_dev, status.st_ino))


def states_of(root: Path, names: Iterable[str]) -> dict[Path, FileState]:
    """The states of those of ``names`` in ``root`` that exist."""
    found = ((root / name, state_of(root / name)) for name in names)
    return {path: state for path, state in found if state is not None}


def changed_files(checkpoint: Checkpoint) -> dict[Path, str]:
    """The files of a checkpoint that are no longer those that were opened, and what tells."""
    found = ((path, _difference(state, state_of(path))) for path, state in checkpoint.states.items())
    return {path: difference for path, difference in found if difference}


def _difference(opened: FileState, now: FileState | None) -> str:
    if now is None:
        return "it is gone"
    if now.nbytes != opened.nbytes:
        return f"it had {opened.nbytes} bytes and has {now.nbytes}"
    if now.identity != opened.identity:
        return "another file has its name"
    return "it was written to" if now != opened else ""
