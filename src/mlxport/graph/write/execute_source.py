"""Run emitted source."""

from __future__ import annotations

import linecache
import sys
import types

__all__ = ["execute"]

_count = 0


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
