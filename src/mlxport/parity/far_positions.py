"""Which positions a probe reads: few, spread to the end of the context, on both sides of every edge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["FAILURES", "Pieces", "Reached", "far_end", "grows", "growth_note", "pieces", "stated_edges"]

Pieces = list[list[int]]  # positions of the tokens of each call, ascending and without gaps within a call


class Reached(Exception):
    """What was wanted of a model has been computed; the rest of it need not run."""


FAILURES = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a model's code may raise where it is run as nobody runs it."""

# float32, in which both sides compute angles, holds whole numbers up to here
_MOST = 1 << 24
_UNSTATED = 1 << 17  # where a config names no end, and the encoding has none
_EDGES = ("window", "chunk", "position", "length", "context", "scale", "size")
_SPREAD = 4


def far_end(settings: Mapping[str, Any], context: int | None, exact: int | None) -> int:
    """The number of tokens up to which an output shall compute what its original does.

    Args:
        settings: Of the language model, as transformers reads them.
        context: Tokens that the model was made for, None where nothing says.
        exact: Tokens up to which the target computes the same, None for any number.
    """
    scaled = [
        int(rope["factor"] * original)
        for rope in _ropes(settings)
        if isinstance(rope.get("factor"), (int, float))
        and isinstance(original := rope.get("original_max_position_embeddings") or context, int)
    ]
    return max(min(max([context or _UNSTATED, *scaled]), exact or _MOST, _MOST), 2)


def stated_edges(settings: Mapping[str, Any], end: int) -> list[int]:
    """Lengths that a config names: windows, chunks, the length before a rope was scaled."""
    values = [item for part in (settings, *_ropes(settings)) for item in part.items()]
    named = {value for name, value in values if type(value) is int and any(word in name for word in _EDGES)}
    return sorted(value for value in named if 1 < value < end)


def grows(settings: Mapping[str, Any]) -> bool:
    """Whether a rope's frequencies depend on the length of the text that is read so far."""
    return not _rope_types(settings).isdisjoint({"dynamic", "longrope", "su"})


def growth_note(settings: Mapping[str, Any], context: int | None) -> str:
    """What a rope that grows with the text means for long prompts; empty where there is none."""
    if "dynamic" not in _rope_types(settings) or not context:
        return ""
    return (
        f"rope scaling is dynamic: beyond {context} tokens, keys are rotated for the length read so far. The same "
        "pieces of text give the same on both sides; mlx-lm reads a long prompt in pieces, transformers as a whole"
    )


def pieces(end: int, edges: Iterable[int], *, alone: bool = False) -> Pieces:
    """The calls of a probe, each some tokens without a gap between them; the last is one token, as generation has it.

    Args:
        end: Number of positions; the last is ``end - 1``.
        edges: Lengths of windows and chunks; keys stand on both sides of them, seen from the end.
        alone: Every call sees its own tokens only, so that calls are longer and stand across multiples of the edges.
    """
    wanted: set[int] = set()

    def around(position: int, before: int, after: int) -> None:
        wanted.update(range(max(position - before, 0), min(position + after, end)))

    around(0, 0, 4)
    for edge in edges:
        around(edge, 2, 2)
        around(end - edge, 5 if not alone else 2, 3)
        around((end - 1) // edge * edge, 3, 3)
    step = end
    while step := step // _SPREAD:
        around(step, 1, 1)
    around(end, 5, 0)
    ordered = sorted(wanted)
    calls: Pieces = []
    for position in ordered[:-1]:
        if calls and calls[-1][-1] == position - 1 and (alone or len(calls[-1]) < 8):
            calls[-1].append(position)
        else:
            calls.append([position])
    return [*calls, ordered[-1:]]


def _rope_types(settings: Mapping[str, Any]) -> set[Any]:
    return {rope.get("rope_type") or rope.get("type") for rope in _ropes(settings)}


def _ropes(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rope settings of all layers, or those of each kind of layer."""
    found = []
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(rope := settings.get(name), Mapping):
            found += [rope, *(part for part in rope.values() if isinstance(part, Mapping))]
    return found
