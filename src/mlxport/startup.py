"""Start sooner: leave torch out of a process that will not use it.

mlx-lm imports transformers, which imports torch wherever that is installed: about half of the start-up time and a third
of the memory of a conversion without verification.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

_TORCH_FILES = (".bin", ".pt", ".pth")
_owned = False


def own_process() -> None:
    """Declare that this process runs one mlxport command and nothing else (the command line does)."""
    global _owned
    _owned = True
    gc.set_threshold(50_000, 20, 20)  # imports make many objects that stay: collecting them takes a tenth of start-up


def leave_torch_out(source: str) -> None:
    """Make torch unimportable from here on, if the process is ours and ``source`` has no torch files to read."""
    folder = Path(source).expanduser()
    if not _owned or "torch" in sys.modules or not folder.is_dir():
        return
    if not any(path.suffix in _TORCH_FILES for path in folder.iterdir()):
        sys.modules["torch"] = None  # type: ignore[assignment]
