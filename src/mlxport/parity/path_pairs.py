"""Modules by their paths: which of MLX's is which of torch's, from the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

__all__ = ["align"]


def _suffixes(path: str) -> list[tuple[str, ...]]:
    """Every suffix of a path, longest first, that keeps all its numbered components."""
    parts = tuple(path.split("."))
    first_number = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    # A bare number names no module: the list that holds it belongs to the name.
    return [
        parts[start:] for start in range(min(first_number, max(len(parts) - 1, 0)) + 1) if not parts[start].isdigit()
    ]


def align(ours: Iterable[str], theirs: Iterable[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """MLX module path -> torch module path, in the order of ``ours``; modules without a counterpart are left out.

    Args:
        ours: Paths in the MLX model.
        theirs: Paths in the torch model.
        known: Pairs that are known already, from the weights' own mapping.
    """
    theirs = list(theirs)
    by_suffix: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path in theirs:
        for suffix in _suffixes(path):
            by_suffix[suffix].append(path)
    names = set(theirs)
    pairs: dict[str, str] = {}
    for path in ours:
        if known and known.get(path) in names:
            pairs[path] = known[path]
            continue
        for suffix in _suffixes(path):
            if len(by_suffix.get(suffix, ())) == 1:
                pairs[path] = by_suffix[suffix][0]
                break
    return pairs
