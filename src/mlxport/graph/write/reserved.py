"""Names that the code of a port uses itself, so that no value in it may have them."""

from __future__ import annotations

import keyword

from mlxport.graph.lower.registry import HELPERS
from mlxport.graph.write.generating import IMPORTED

__all__ = ["is_reserved", "unreserved"]

_CHECKS = ("check_inputs", "check_parts", "check_fixed")
_USED = frozenset([*"mx nn math self args len int float round range zip max min tuple list print".split(), *_CHECKS])


def is_reserved(name: str) -> bool:
    """Whether a value of this name would hide what the code of a port calls by it."""
    return keyword.iskeyword(name) or name in _USED or name in IMPORTED or name in HELPERS


def unreserved(name: str) -> str:
    """``name``, with an underscore behind where it is taken."""
    return f"{name}_" if is_reserved(name) else name
