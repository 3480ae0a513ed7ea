"""What a lowering raises where it cannot go on."""

from __future__ import annotations

__all__ = ["UnsupportedOp"]


class UnsupportedOp(Exception):
    """An op, or one setting of it, that has no lowering: the only exception that the lowering of a graph collects."""
