"""Run emitted source."""

from __future__ import annotations

import linecache
import sys
import types

__all__ = ["execute"]

_count = 0


def execute(source: str) -> types.ModuleType:
    """Run emitted source as a module of its own, whose lines tracebacks show."""
    global _count
    _count += 1
    name = f"mlxport_port_{_count}"
    file = f"<{name}>"
    module = types.ModuleType(name)
    sys.modules[name] = module
    module.__file__ = file
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), module.__dict__)
    return module
