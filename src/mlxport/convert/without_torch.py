"""Start sooner: leave torch out of a process that will not use it.

mlx-lm imports transformers, which imports torch wherever that is installed: about half of the start-up time and a third
of the memory of a conversion without verification.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
from pathlib import Path

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
    if layout == "generated" or (layout == "auto" and not _in_mlx_lm(folder)):
        return
    if not any(path.suffix in _TORCH_FILES for path in folder.iterdir()):
        sys.modules["torch"] = None  # type: ignore[assignment]


def _in_mlx_lm(folder: Path) -> bool:
    """Whether mlx-lm has a file of the model type's name; nothing is imported to find out."""
    spec = importlib.util.find_spec("mlx_lm")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return True  # what is wrong with it is said by the conversion
    places = spec.submodule_search_locations if spec is not None else None
    return name.isidentifier() and any((Path(place) / "models" / f"{name}.py").is_file() for place in places or ())
