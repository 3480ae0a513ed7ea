"""Records of both sides that belong together, and how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass

from mlxport.parity.metrics import relative_error
from mlxport.parity.path_pairs import align
from mlxport.parity.recording import Array, Record

__all__ = ["Pair", "pairs_of"]


@dataclass(frozen=True)
class Pair:
    """One module on both sides with the errors of what went in and what came out; None where it has no such array."""

    ours: Record
    theirs: Record
    input_error: float | None
    output_error: float | None


def _error(ours: Array | None, theirs: Array | None) -> float | None:
    if ours is None or theirs is None:
        return None
    if ours.size != theirs.size:
        return None
    return relative_error(ours.reshape(theirs.shape), theirs)


def pairs_of(ours: dict[str, Record], theirs: dict[str, Record], head: str | None = None) -> list[Pair]:
    """Modules of both sides, in the order in which their calls ended in MLX."""
    known = {path: head for path in ours if path.endswith(".as_linear")} if head else {}
    found = []
    for path, other in align(ours, theirs, known).items():
        a, b = ours[path], theirs[other]
        found.append(Pair(a, b, _error(a.input, b.input), _error(a.output, b.output)))
    return found
