"""A program of an encoder and a decoder as two methods: what reads, and what writes on what was read."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from mlxport.graph.rewrite.caches.cached_step import NotCached
from mlxport.graph.write.scope_parts import Step

__all__ = ["Encoding", "encode_steps", "step_of_decoder"]


@dataclass(frozen=True)
class Encoding:
    """How a program is cut in two.

    Attributes:
        source: Name of the tokens that the encoder reads.
        written: Name of the tokens that the decoder has written.
        places: Where each of the encoder's results goes: ``cache[0][1][0]``.
    """

    source: str
    written: str
    places: tuple[str, ...]


def encode_steps(encoding: Encoding, steps: Sequence[Step], result: ast.expr) -> list[Step]:
    """Statements that read ``source`` and put what was read into its places."""
    assert isinstance(result, ast.Tuple)
    kept = result.elts[1:]
    needed = _needed(steps, kept, encoding.source, encoding.written)
    for place, value in zip(encoding.places, kept, strict=True):
        _put(needed, place, value)
    return needed


def step_of_decoder(encoding: Encoding, steps: Sequence[Step], result: ast.expr) -> tuple[list[Step], ast.expr]:
    """Statements that compute the logits from ``written`` and what was read, and the logits."""
    assert isinstance(result, ast.Tuple)
    logits = result.elts[0]
    return _needed(steps, [logits], encoding.written, encoding.source), logits


def _put(steps: list[Step], place: str, value: ast.expr) -> None:
    """Assign ``value`` to ``place``: where it is made, if it serves nothing else."""
    if isinstance(value, ast.Name):
        made = [index for index, step in enumerate(steps) if value.id in step.targets]
        later = {name for step in steps[made[-1] + 1 :] for name in _names(step.value)} if made else {value.id}
        if made and steps[made[-1]].targets == (value.id,) and value.id not in later:
            steps[made[-1]] = Step((place,), steps[made[-1]].value)
            return
    steps.append(Step((place,), value))


def _needed(steps: Sequence[Step], results: Sequence[ast.expr], own: str, other: str) -> list[Step]:
    """The statements that ``results`` follow from; sizes that both inputs have are taken from ``own``.

    Raises:
        NotCached: Something else of ``other`` is needed.
    """
    wanted = {name for result in results for name in _names(result)}
    found = []
    for step in reversed(steps):
        if used := wanted.intersection(step.targets):
            wanted -= set(step.targets)
            step = _of_own(step, used, own, other)
            wanted |= _names(step.value)
            found.append(step)
    return found[::-1]


def _of_own(step: Step, used: set[str], own: str, other: str) -> Step:
    """``step`` without the other part's input: only the size of the batch is asked of it, which is the same."""
    if other not in _names(step.value):
        return step
    shape = f"{other}.shape"
    text = ast.unparse(step.value)
    if not (text == f"{shape}[0]" or (text == shape and used == {step.targets[0]})):
        raise NotCached(f"{text} is needed where {own} is given alone")
    return Step((step.targets[0],), ast.parse(f"{own}.shape[0]", mode="eval").body)


def _names(tree: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
