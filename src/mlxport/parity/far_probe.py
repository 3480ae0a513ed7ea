"""Far positions, probed cheaply: of each kind of attention one block, a few tokens up to the end of the context.

A long text in full would cost hours. What differs there is what positions reach: rotations and how they are scaled,
tables, windows and chunks. So one attention of each kind runs alone, on both sides with the same weights, on tokens
that stand at chosen positions with nothing between them, and what it gives must be equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxport.errors import UnsupportedError
from mlxport.parity.far_original import FarOriginal
from mlxport.parity.far_output import Attention, FarOutput
from mlxport.parity.far_positions import Pieces, far_end, grows, pieces, stated_edges
from mlxport.parity.lazy_reference import lazy_model
from mlxport.parity.parity_report import FarAttention, Positions
from mlxport.parity.recording import Array
from mlxport.parity.setup import Run
from mlxport.quant.tolerances import EQUAL

__all__ = ["probe_positions"]

_MOST_KINDS = 8
_SAME = 2e-4  # of what an attention gives, as in the tolerances of modules
_OF_EFFECT = 0.02  # of what positions change in it
_OF_NOISE = 10.0  # of what the last bit of a position changes in it: both sides compute angles in float32
_UNDECIDED = 0.3  # of the effect of positions: as much noise says nothing any more


@dataclass(frozen=True)
class _Compared:
    """What one attention gave, a row for each token, and what a row may be off."""

    positions: Array
    error: Array
    limit: Array
    decided: Array

    @property
    def good(self) -> Array:
        """Whether each row is within its limit, and says something."""
        return (self.error <= self.limit) & self.decided


def probe_positions(
    run: Run, settings: dict[str, Any], context: int | None, exact: int | None, upto: int, near: bool
) -> Positions:
    """Compare an output with its original at far positions.

    Args:
        run: The verification, its weights checked.
        settings: Of the language model, as transformers reads them.
        context: Tokens that the model was made for, None where nothing says.
        exact: Tokens up to which the target computes the same, None for any number.
        upto: Positions that were compared in full.
        near: The target computes a near variant of attention.
    """
    end = far_end(settings, context, exact)
    equal = run.row().row in EQUAL
    if not equal and run.layout is None:
        return Positions(min(upto, end), end, reason="the stored weights cannot be mapped back to the original's")
    run.say(f"comparing attention at positions up to {end}")
    try:
        output = FarOutput(run.folder, trust_remote_code=run.checkpoint.trust_remote_code)
        attentions = output.attentions()
        if not attentions:
            return Positions(end, end)
        edges = sorted({*stated_edges(settings, end), *(w for w in output.windows if 1 < w < end)})
        model = lazy_model(run.checkpoint, layout=None if equal else run.layout)
        ids = np.resize(np.concatenate(run.ids), 1024)
        original = FarOriginal(model, ids)
        chosen = _kinds(attentions, original)
    except UnsupportedError as error:
        return Positions(min(upto, end), end, reason=error.message)
    probed = [
        _probe(attention, output, original, pieces(end, edges, alone=attention.alone), grows(settings), upto, near)
        for attention in chosen[:_MOST_KINDS]
    ]
    left = len(chosen) - len(probed)
    proven = min(found.proven for found in probed)
    return Positions(proven, end, tuple(probed), f"{left} more kinds of attention were not probed" if left else "")


def _kinds(attentions: list[Attention], original: FarOriginal) -> list[Attention]:
    """One attention of each kind, as both sides tell kinds apart."""
    found: dict[Any, Attention] = {}
    for attention in attentions:
        inside = attention.path[len(attention.block) :]
        found.setdefault((attention.kind, original.settings(original.block(attention.block), inside)), attention)
    return list(found.values())


def _probe(
    attention: Attention, output: FarOutput, original: FarOriginal, calls: Pieces, grows: bool, upto: int, near: bool
) -> FarAttention:
    positions = np.array([position for call in calls for position in call])
    block, inside = original.block(attention.block), attention.path[len(attention.block) :]
    try:
        rows = _rows(attention, output, original, block, inside, calls, grows)
    except UnsupportedError as error:
        return FarAttention(attention.path, block, min(upto, int(positions[-1]) + 1), reason=error.message)
    bad = np.flatnonzero(~rows.good)
    if not len(bad):
        return FarAttention(attention.path, block, int(positions[-1]) + 1)
    first = int(bad[0])
    proven = max(int(positions[first - 1]) + 1 if first else 0, 0)
    wrong = np.flatnonzero(rows.error > rows.limit)
    if near or not len(wrong):
        why = "angles of float32 say no more there" if not len(wrong) else "the target computes a near variant only"
        return FarAttention(attention.path, block, max(proven, min(upto, int(positions[first]))), reason=why)
    at = int(wrong[0])
    return FarAttention(attention.path, block, proven, int(positions[at]), float(rows.error[at]), float(rows.limit[at]))


def _rows(
    attention: Attention,
    output: FarOutput,
    original: FarOriginal,
    block: str,
    inside: str,
    calls: Pieces,
    grows: bool,
) -> _Compared:
    positions = [position for call in calls for position in call]
    # Only a rope that grows with the text asks torch for the same calls; else one call says the same sooner.
    asked = calls if grows or attention.alone else [positions]

    def theirs(calls: Pieces, given: Any = None) -> Array:
        return original.run(block, inside, calls, given=given, forget=attention.alone)

    far, ours = theirs(asked), output.run(attention, original.ids, calls)
    if ours.shape != far.shape:
        raise UnsupportedError(f"the output's {attention.path} gives {ours.shape}, the original's {far.shape}")
    near = theirs(_near(asked))
    try:
        jittered = theirs(asked, [[float(np.nextafter(np.float32(p), np.inf)) for p in call] for call in asked])
    except UnsupportedError:  # a table of positions, which no last bit changes
        jittered = far
    size, error, effect, noise = (np.linalg.norm(a, axis=-1) for a in (far, ours - far, near - far, jittered - far))
    limit = _SAME * size + _OF_EFFECT * effect + _OF_NOISE * noise
    decided = (_OF_NOISE * noise <= _UNDECIDED * effect) | (effect <= 10 * _SAME * size)
    return _Compared(np.array(positions), error / np.maximum(size, 1e-30), limit / np.maximum(size, 1e-30), decided)


def _near(calls: Pieces) -> Pieces:
    """The same calls with no gaps between them."""
    found, place = [], 0
    for call in calls:
        found.append(list(range(place, place + len(call))))
        place += len(call)
    return found
