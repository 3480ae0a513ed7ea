"""What each setting of each module does to the output: measured at some, scaled by the weights' error at others.

Damage is the divergence (KL, nats per token) of the next token's distribution from the original's, when one module is
rounded and the others are not. For small errors it grows with the squared error of the weights, so that one measured
setting of a module tells of its others; damages of modules are taken to add up.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxport.allocate.probe import Probe, probed, rounded
from mlxport.model.both_texts import written_size
from mlxport.model.tensors import Tensor
from mlxport.types import QuantSpec

__all__ = ["Array", "Measurement", "ProbeBatch", "damages", "token_divergences", "weight_errors"]

Array = np.ndarray[Any, Any]

# Weights of a module that its errors are measured on, in rows spread evenly over it: their error is within about 2% of
# that of all.
SAMPLE = 1 << 17
_PIECES = 16
_LEAST = 1e-12
# Of the median of all modules: what so few tokens did not reach may matter to others.
_FLOOR = 0.01


@dataclass(frozen=True)
class Measurement:
    """What was measured of a model.

    Attributes:
        errors: Module path to setting to the squared error of its weights.
        divergence: Module path to setting to the divergence, for the settings that were measured.
        energy: Module path to the sum of its squared weights.
    """

    errors: Mapping[str, Mapping[QuantSpec, float]]
    divergence: Mapping[str, Mapping[QuantSpec, float]]
    energy: Mapping[str, float]


@dataclass(frozen=True)
class ProbeBatch:
    """What the model reads at once.

    Attributes:
        ids: Tokens of one part, int32 [sequences, length].
        parts: Most parts, one of them the original.
        head: The module that makes the logits.
        stride: Every so many-th token has its logits compared.
    """

    ids: mx.array
    parts: int
    head: str = ""
    stride: int = 1


def weight_errors(weight: Tensor, specs: Sequence[QuantSpec], quantizer: str) -> tuple[dict[QuantSpec, float], float]:
    """Squared error of each setting, and squared weights, of all or of a sample of the rows; scaled to all.

    The sample is the same every time: blocks of rows at even distances.
    """
    errors, energy, seen = dict.fromkeys(specs, 0.0), 0.0, 0
    for rows in _sample(weight):
        wide = rows.astype(mx.float32)
        totals = [mx.square(wide).sum()]
        for spec in specs:
            totals.append(mx.square(rounded(rows, spec, quantizer) - wide).sum())
            mx.eval(totals[-1])
        found = [float(np.array(total)) for total in totals]
        energy += found[0]
        for spec, error in zip(specs, found[1:], strict=True):
            errors[spec] += error
        seen += rows.size
        mx.clear_cache()
    scale = math.prod(weight.shape) / max(seen, 1)
    return {spec: error * scale for spec, error in errors.items()}, energy * scale


def _sample(weight: Tensor) -> Iterator[mx.array]:
    """Rows that hold about ``SAMPLE`` weights, in up to 16 pieces from the first row (or expert) to the last."""
    shape = weight.shape
    count, size = shape[0], math.prod(shape[1:])
    if count * size <= SAMPLE:
        yield from (weight.rows(start, stop) for start, stop in weight.blocks())
        return
    pieces = min(_PIECES, count)
    if len(shape) > 2 and size > SAMPLE // pieces:  # a part of each of some experts
        most = max(1, SAMPLE // pieces * shape[1] // size)
        found = []
        for piece in range(pieces):
            first = (shape[1] - most) * piece // max(pieces - 1, 1)
            expert = (count - 1) * piece // max(pieces - 1, 1)
            found.append(mx.contiguous(weight.rows(expert, expert + 1)[:, first : first + most]))
            mx.eval(found[-1])
        yield mx.concatenate(found)
        return
    most = max(1, SAMPLE // pieces // size)
    starts = [(count - most) * piece // max(pieces - 1, 1) for piece in range(pieces)]
    yield mx.concatenate([weight.rows(start, start + most) for start in starts])


def token_divergences(
    model: nn.Module,
    modules: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    batch: ProbeBatch,
    changes: Sequence[Mapping[str, QuantSpec]],
    quantizer: str,
    advance: Callable[[Mapping[str, QuantSpec]], None] = lambda change: None,
) -> list[Array]:
    """What each of several sets of roundings brings at every token that is compared, nats.

    Args:
        model: mlx-lm's model in float32; the weights of ``modules`` are not used.
        modules: Path to module.
        weights: Their weights, by path.
        batch: Tokens, and how many parts of them are read at once.
        changes: Module path to setting; what rounds one module each comes in the order in which modules are called.
        quantizer: How weights are rounded.
        advance: Called with each set when it was measured.

    Returns:
        For each set the divergence from the original, float64 [sequences, compared tokens].
    """
    found: list[Array] = []
    room = max(1, batch.parts - 1)
    for first in range(0, len(changes), room):
        here = changes[first : first + room]
        roundings: dict[str, list[tuple[int, QuantSpec]]] = {}
        for part, change in enumerate(here, 1):
            for path, spec in change.items():
                roundings.setdefault(path, []).append((part, spec))
        shape = batch.ids.shape[0], written_size(model, batch.ids.shape[1])
        probe = Probe(weights, len(here) + 1, roundings, quantizer, batch.head, batch.stride, shape)
        with probed(modules, probe):
            output = model(mx.concatenate([batch.ids] * probe.parts))
            logits = getattr(output, "logits", output)
        mx.eval(logits)
        for change, divergence in zip(here, _divergences(logits, len(batch.ids)), strict=True):
            found.append(divergence)
            advance(change)
        del output, logits
        mx.clear_cache()
    return found


def _divergences(logits: mx.array, sequences: int) -> Iterator[Array]:
    """KL to the first part of the batch, of every other part, by token."""
    original = nn.log_softmax(logits[:sequences].astype(mx.float32), axis=-1)
    for start in range(sequences, logits.shape[0], sequences):
        other = nn.log_softmax(logits[start : start + sequences].astype(mx.float32), axis=-1)
        yield np.array((mx.exp(original) * (original - other)).sum(axis=-1), np.float64)


def damages(measured: Measurement) -> dict[str, dict[QuantSpec, float]]:
    """The damage of every setting of every module.

    A measured setting has what was measured; others their squared error times the divergence per squared error of
    the measured settings, interpolated between the two nearest errors. A module that was not measured, because no
    call reached it, gets the median of the others for its relative error, and none gets less than a hundredth of that.
    """
    rates = {path: _rates(given, measured.errors[path]) for path, given in measured.divergence.items()}
    relative = [rate * measured.energy[path] for path, given in rates.items() for _, rate in given[:1]]
    usual = statistics.median(relative) if relative else 1.0
    result = {}
    for path, errors in measured.errors.items():
        here = usual / max(measured.energy[path], _LEAST)
        rate = rates.get(path) or [(1.0, here)]
        result[path] = {spec: error * max(_rate(rate, error), _FLOOR * here) for spec, error in errors.items()}
    return result


def _rates(divergence: Mapping[QuantSpec, float], errors: Mapping[QuantSpec, float]) -> list[tuple[float, float]]:
    """Squared errors, ascending, with the divergence for each unit of it."""
    return sorted((errors[spec], value / errors[spec]) for spec, value in divergence.items() if errors[spec] > _LEAST)


def _rate(rates: Sequence[tuple[float, float]], error: float) -> float:
    """The rate at an error: that of the nearest measured one, between two of them in proportion to the logarithm."""
    for (low, below), (high, above) in zip(rates, rates[1:], strict=False):
        if low <= error <= high:
            share = math.log(error / low) / math.log(high / low) if high > low else 0.0
            return below + (above - below) * share
    return rates[0][1] if error < rates[0][0] else rates[-1][1]
