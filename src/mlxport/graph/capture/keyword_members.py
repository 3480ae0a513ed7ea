"""Members of a module that are called like a word of Python: ``nn.ModuleDict({"class": …})``."""

from __future__ import annotations

import keyword
from collections.abc import Iterator
from contextlib import contextmanager

from torch.fx import graph as fx_graph

__all__ = ["keyword_members"]


@contextmanager
def keyword_members() -> Iterator[None]:
    """Within, the code that torch.fx generates reaches such members by ``getattr``: ``self.class`` is no Python."""
    original = fx_graph._format_target

    def spelled(base: str, target: str) -> str:
        for name in target.split("."):
            usual = name.isidentifier() and not keyword.iskeyword(name)
            base = f"{base}.{name}" if usual else f"getattr({base}, {name!r})"
        return base

    fx_graph._format_target = spelled
    try:
        yield
    finally:
        fx_graph._format_target = original
