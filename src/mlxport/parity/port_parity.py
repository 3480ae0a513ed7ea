"""A port against the original: every output, on the example inputs and on others, in the port's own dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import torch

from mlxport.graph.capture.examples import Example
from mlxport.graph.write.port_weights import from_torch
from mlxport.layouts.generated.random_states import random_states_kept
from mlxport.parity.parity_report import Divergence
from mlxport.parity.port_calls import CallResult, call_original, call_port
from mlxport.quant.tolerances import PORTED, PORTED_COSINE
from mlxport.transform.cpu_experts import half_precision_experts, products, unsaid_remark

__all__ = ["OutputComparison", "PortParity", "compare", "verify_port"]

_NOTHING = "the original gives nothing but NaN, so nothing was compared"
_SMALLEST = 1e-6  # scale of an output below which its numbers are taken for rounding


@dataclass(frozen=True)
class OutputComparison:
    """One output of one call.

    Attributes:
        inputs: Name of the input set.
        name: Place of the output in what the module returns.
        shape: Its shape.
        max_abs: Largest absolute difference.
        relative: The same over the reference's largest absolute value.
        rms: RMS of the difference over RMS of the reference.
        cosine: Cosine of the two, flattened.
        passed: Whether the bound holds.
        failure: What does not hold.
    """

    inputs: str
    name: str
    shape: tuple[int, ...]
    max_abs: float
    relative: float
    rms: float
    cosine: float
    passed: bool
    failure: str = ""


@dataclass(frozen=True)
class PortParity:
    """The verification of a port.

    Attributes:
        dtype: Main floating dtype of the port.
        bits: Fewest bits of a quantized module, None when nothing is quantized.
        comparisons: Every output of every input set.
        divergence: Where a failing port goes wrong.
        notes: What was not covered, and why.
        mode: Distinguishes it from the other reports.
        problems: What is wrong besides values: a call that raises, stored weights that are not the original's.
    """

    dtype: str
    bits: int | None
    comparisons: tuple[OutputComparison, ...]
    divergence: Divergence | None = None
    notes: tuple[str, ...] = ()
    mode: str = "ported"
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every output is within its bound."""
        return all(item.passed for item in self.comparisons) and not self.problems

    @property
    def nothing_compared(self) -> bool:
        """Whether it failed, and only since the original gives no number to compare with."""
        failed = [item for item in self.comparisons if not item.passed]
        return bool(failed) and not self.problems and all(item.failure == _NOTHING for item in failed)

    @property
    def hint(self) -> str:
        """What to do about a failure; empty where it is a fault of the port."""
        return "give an example for which the original computes numbers" if self.nothing_compared else ""

    def to_json(self) -> dict[str, Any]:
        """Plain values only, for the record; figures that are not finite become null."""
        rows = [
            {
                key: (value if not isinstance(value, float) or math.isfinite(value) else None)
                for key, value in vars(item).items()
            }
            for item in self.comparisons
        ]
        return {
            "mode": self.mode,
            "dtype": self.dtype,
            "bits": self.bits,
            "passed": self.passed,
            "comparisons": rows,
            "divergence": self.divergence.to_json() if self.divergence else None,
            "notes": list(self.notes),
            "problems": list(self.problems),
        }

    def summary(self) -> str:
        """Lines for a terminal."""
        lines = [
            f"{item.inputs}, {item.name} {list(item.shape)}: max {item.max_abs:.2e} ({item.relative:.1e} of the "
            f"scale), cosine {item.cosine:.7f}, {'ok' if item.passed else 'FAILED'}"
            for item in self.comparisons
        ]
        if self.divergence is not None:
            lines.append(self.divergence.summary())
        lines += [f"wrong: {line}" for line in self.problems]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def failure_message(self) -> str:
        """What is wrong, for the error's message; empty when the output passed."""
        if self.passed:
            return ""
        failures = [f"{c.inputs}, {c.name}: {c.failure}" for c in self.comparisons if not c.passed]
        first = (
            "the port is not verified"
            if self.nothing_compared
            else "the port does not compute what the original computes"
        )
        lines = [first, *failures[:8], *self.problems]
        if self.divergence is not None:
            lines.append(self.divergence.summary())
        return "\n  ".join(lines)


class Figures(NamedTuple):
    """Largest difference, that over the scale, RMS ratio, cosine, and what does not hold (empty if all does)."""

    max_abs: float
    relative: float
    rms: float
    cosine: float
    failure: str = ""

    @classmethod
    def none(cls, failure: str) -> Figures:
        """Two arrays that cannot be compared."""
        return cls(math.inf, math.inf, math.inf, 0.0, failure)


def compare(ours: mx.array, theirs: torch.Tensor, dtype: str, bits: int | None) -> Figures:
    """How far an output is from the original's.

    Args:
        ours: The port's output.
        theirs: The original's, float32 where it is floating.
        dtype: Main dtype of the port.
        bits: Fewest bits of a quantized module, or None.
    """
    reference = from_torch(theirs)
    if ours.shape != reference.shape:
        return Figures.none(f"shape {ours.shape}, the original's is {reference.shape}")
    floating = mx.issubdtype(reference.dtype, mx.inexact)
    if mx.issubdtype(ours.dtype, mx.inexact) != floating:
        return Figures.none(f"dtype {ours.dtype}, the original's is {reference.dtype}")
    if reference.size == 0:
        return Figures(0.0, 0.0, 0.0, 1.0)
    if bool(mx.isnan(reference).all()):
        return Figures.none(_NOTHING)
    if not floating:
        differing = int((ours.astype(reference.dtype) != reference).sum())
        if not differing:
            return Figures(0.0, 0.0, 0.0, 1.0)
        share = differing / reference.size
        allowed = 0.0 if dtype == "float32" and bits is None else 0.05
        failure = f"{differing} of {reference.size} values differ" if share > allowed else ""
        return Figures(float(differing), share, share, 1.0 - share, failure)
    if mx.issubdtype(reference.dtype, mx.complexfloating):
        ours, reference = (mx.stack([x.real, x.imag]) for x in (ours, reference))
    return _floating(ours.astype(mx.float32), reference.astype(mx.float32), dtype, bits)


def _floating(a: mx.array, b: mx.array, dtype: str, bits: int | None) -> Figures:
    lost = mx.isfinite(a) != mx.isfinite(b)
    if dtype == "float16":  # what is beyond its range, as what is added to hide a key, may become infinite
        lost = lost & ~(mx.isfinite(b) & (mx.abs(b) > 65504))
    if count := int(lost.sum()):
        return Figures.none(f"{count} of {a.size} values are finite on one side only")
    other = ~mx.isfinite(a) & ~mx.isfinite(b) & (a != b) & ~(mx.isnan(a) & mx.isnan(b))
    if count := int(other.sum()):
        return Figures.none(f"{count} of {a.size} values are infinities of another sign, or NaN on one side only")
    usable = mx.isfinite(a) & mx.isfinite(b)
    a, b = mx.where(usable, a, 0), mx.where(usable, b, 0)
    difference = mx.abs(a - b)
    scale = mx.maximum(mx.abs(b).max(), _SMALLEST)
    worst = difference.max()
    rms = mx.sqrt(mx.square(a - b).mean() / mx.maximum(mx.square(b).mean(), 1e-12))
    unit_a, unit_b = (x / mx.maximum(mx.abs(x).max(), 1e-37) for x in (a, b))  # squares of small numbers vanish
    norms = mx.linalg.norm(unit_a.reshape(-1)) * mx.linalg.norm(unit_b.reshape(-1))
    cosine = mx.where(norms > 0, (unit_a * unit_b).sum() / mx.maximum(norms, 1e-30), (worst == 0).astype(mx.float32))
    figures = [float(x.item()) for x in (worst, worst / scale, rms, cosine)]  # type: ignore[arg-type]
    if bits is not None:
        least = next(value for limit, value in PORTED_COSINE.items() if bits >= limit)
        failure = "" if figures[3] >= least else f"cosine {figures[3]:.4f}, at least {least} expected with {bits} bits"
    else:
        row = PORTED.get(dtype, PORTED["float32"])
        most, mean = row.largest, row.rms
        held = figures[1] <= most and figures[2] <= max(mean, most if dtype == "float32" else 0)
        failure = "" if held else f"differs by {figures[1]:.1e} of the scale, over {most:.0e} ({dtype})"
    return Figures(figures[0], figures[1], figures[2], figures[3], failure)


def _weak(wanted: torch.Tensor) -> list[str]:
    """Why a comparison with these numbers says little."""
    if not wanted.is_floating_point() or not wanted.numel():
        return []
    finite = wanted[torch.isfinite(wanted)]
    if not finite.numel():
        return ["no finite number to compare"]
    largest = float(finite.abs().max())
    return [f"nothing larger than {largest:.1e}, which may be rounding"] if largest < _SMALLEST else []


def verify_port(
    ported: nn.Module,
    fresh: Callable[[], Callable[..., Any]],
    examples: Sequence[Example],
    *,
    dtype: str,
    bits: int | None = None,
    others: Callable[[], Any] | None = None,
    on_outputs: Callable[[Example, Mapping[str, mx.array]], None] | None = None,
) -> PortParity:
    """Run both on every example and compare every output; each call finds both as they were made.

    Args:
        ported: The port with its weights; they are at the end as they were, also where it writes some of them.
        fresh: Gives the original, computing in float32, as it is before its first call.
        examples: Input sets that must pass; they are copied for each call.
        dtype: Main dtype of the port.
        bits: Fewest bits of a quantized module, or None.
        others: Candidates for one more input set: the first that the original takes is used.
        on_outputs: Called with the port's outputs of each example.
    """
    half_precision_experts()
    before = products()
    comparisons: list[OutputComparison] = []
    notes: list[str] = []
    refused: list[str] = []
    problems: list[str] = []

    def run(example: Example) -> bool:
        try:
            wanted = call_original(fresh, example)
        except Exception as error:  # the original's own limits on its inputs, in its own words
            if example in examples:
                raise
            refused.append(f"{example.name} not compared: the original raises {type(error).__name__}")
            return False
        if example not in examples and any(map(_only_nan, wanted.outputs.values())):
            refused.append(f"{example.name} not compared: the original gives nothing but NaN")
            return False
        if not wanted.outputs and not wanted.written:
            problems.append(f"{example.name}: the original returns no tensor, so nothing was compared")
            return True
        try:
            ours = call_port(ported, example, wanted.written)
        except Exception as error:  # emitted code: whatever it raises is a fault of the port
            problems.append(f"{example.name}: the port raises {type(error).__name__}: {error}")
            return True
        if on_outputs is not None:
            on_outputs(example, ours.outputs)
        if len(wanted.outputs) != len(ours.outputs):
            counts = f"{len(ours.outputs)} arrays, the original {len(wanted.outputs)}"
            problems.append(f"{example.name}: the port gives {counts}")
            return True
        for name, got, expected in _pairs(ours, wanted):
            notes.extend(f"{example.name}, {name}: the original gives {weak}" for weak in _weak(expected))
            found = compare(got, expected, dtype, bits)
            row = OutputComparison(example.name, name, tuple(got.shape), **found._asdict(), passed=not found.failure)
            comparisons.append(row)
        return True

    with random_states_kept():
        for example in examples:
            run(example)
        for candidate in others() if others is not None else ():
            if run(candidate):
                refused.clear()
                break
    notes += [*refused, *filter(None, [unsaid_remark(before)])]
    return PortParity(dtype, bits, tuple(comparisons), notes=tuple(dict.fromkeys(notes)), problems=tuple(problems))


def _only_nan(tensor: torch.Tensor) -> bool:
    return tensor.numel() > 0 and bool(torch.isnan(tensor).all())


def _pairs(
    ours: CallResult[mx.array], theirs: CallResult[torch.Tensor]
) -> Iterator[tuple[str, mx.array, torch.Tensor]]:
    """What is compared: the outputs in order, and the inputs that the call has written."""
    for (name, wanted), got in zip(theirs.outputs.items(), ours.outputs.values(), strict=True):
        yield name, got, wanted
    for index, wanted in theirs.written.items():
        yield f"input {index} after the call", ours.written[index], wanted
