"""Fusions: what a model spells out in many ops and MLX has in one. One module each, with its test."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Fusion", "fuse"]


@dataclass(frozen=True)
class Fusion:
    """A place where a fusion was applied, or declined for a reason.

    Attributes:
        name: The fusion.
        where: Path of the module.
        declined: Why not; empty if it was applied.
    """

    name: str
    where: str
    declined: str = ""


def fuse(captured: Any) -> list[Fusion]:
    """Apply every fusion to the graph, in order; says what was done and what was not."""
    results: list[Fusion] = []
    for apply in _passes():
        results.extend(apply(captured))
        captured.graph.eliminate_dead_code()
    return results


def _passes() -> list[Callable[[Any], Iterable[Fusion]]]:
    return []
