"""Run emitted source, alone or as a port left it in a folder."""

from __future__ import annotations

import linecache
import sys
import types
from pathlib import Path

import mlx.nn as nn

__all__ = ["execute", "load_folder"]

_count = 0


def load_folder(folder: Path) -> nn.Module:
    """The model of a folder that a port wrote, run by the folder's own source; nothing is written there."""
    path = folder / "model.py"
    model: nn.Module = execute(path.read_text(encoding="utf-8"), str(path)).load(folder)
    return model


def execute(source: str, file: str = "") -> types.ModuleType:
    """Run emitted source as a module of its own, whose lines tracebacks show; ``file`` is where it was read from."""
    global _count
    _count += 1
    name = f"mlxport_port_{_count}"
    module = types.ModuleType(name)
    sys.modules[name] = module
    if not file:
        file = f"<{name}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    module.__file__ = file
    exec(compile(source, file, "exec"), module.__dict__)
    return module
