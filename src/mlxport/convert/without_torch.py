"""Start sooner: leave torch out of a process that will not use it.

mlx-lm imports transformers, which imports torch wherever that is installed: about half of the start-up time and a third
of the memory of a conversion without verification.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from mlxport.errors import SourceError
from mlxport.layouts.base import Layout
from mlxport.layouts.mlx_lm.layout import MLX_LM
from mlxport.layouts.table import AUTO, layouts, named
from mlxport.source.jsonfile import read_object

_TORCH_FILES = (".bin", ".pt", ".pth")
_owned = False


def own_process() -> None:
    """Declare that this process runs one mlxport command and nothing else (the command line does)."""
    global _owned
    _owned = True
    gc.set_threshold(50_000, 20, 20)  # imports make many objects that stay: collecting them takes a tenth of start-up


def leave_torch_out(source: str, layout: str) -> None:
    """Make torch unimportable from here on, if the process is ours and the conversion of ``source`` has no use for it.

    Torch files are read with it, and a model that mlx-lm does not have is captured with it.
    """
    folder = Path(source).expanduser()
    if not _owned or "torch" in sys.modules or not folder.is_dir():
        return
    found = _layout(folder, layout)
    if found is None or found.needs_torch:
        return
    if not any(path.suffix in _TORCH_FILES for path in folder.iterdir()):
        sys.modules["torch"] = None  # type: ignore[assignment]


def _layout(folder: Path, name: str) -> Layout | None:
    """The layout that a conversion will take, by a look that imports nothing; None where it cannot be told."""
    if name != AUTO:
        return named(name)
    try:
        config = read_object(folder / "config.json", SourceError, unique=False)
        str(config["model_type"])
    except (SourceError, KeyError):
        return MLX_LM  # what is wrong with it is said by the conversion
    return next((layout for layout in layouts() if layout.glance(config)), None)
