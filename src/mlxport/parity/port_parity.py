"""A port against the original: every output, on the example inputs and on others, in the port's own dtype.

Of a quantized port, what differs from the original may be noise. That it is right is shown in three steps instead: the
port with the original's weights computes what the original computes; the packed weights are the original's, within what
their bits allow; the quantized port computes what it does with the values that they stand for.

Where a call of the original changes what it holds, later calls are compared too, each on what the one before has left.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import mlx.nn as nn
import torch

from mlxport.graph.capture.examples import Example
from mlxport.graph.write.port_weights import from_torch
from mlxport.layouts.generated.random_states import random_states_kept
from mlxport.parity.held_state import StateChange
from mlxport.parity.plain_ports import PlainPorts, computing_in_float32
from mlxport.parity.port_calls import CallResult, OriginalCalls, call_original, call_port, state_kept
from mlxport.parity.port_report import NOTHING, OutputComparison, PortParity
from mlxport.quant.tolerances import PORTED, PORTED_COSINE
from mlxport.transform.cpu_experts import half_precision_experts, remarked

__all__ = ["DEQUANTIZED", "ORIGINAL_WEIGHTS", "compare", "verify_port"]

Array = TypeVar("Array")

ORIGINAL_WEIGHTS = "the same port with the original's weights vs the original"
DEQUANTIZED = "output vs the same port on dequantized weights"
_SMALLEST = 1e-6  # scale of an output below which its numbers are taken for rounding


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
    return _compared(ours, from_torch(theirs), dtype, bits)


def _compared(ours: mx.array, reference: mx.array, dtype: str, bits: int | None) -> Figures:
    if ours.shape != reference.shape:
        return Figures.none(f"shape {ours.shape}, the original's is {reference.shape}")
    floating = mx.issubdtype(reference.dtype, mx.inexact)
    if mx.issubdtype(ours.dtype, mx.inexact) != floating:
        return Figures.none(f"dtype {ours.dtype}, the original's is {reference.dtype}")
    if reference.size == 0:
        return Figures(0.0, 0.0, 0.0, 1.0)
    if bool(mx.isnan(reference).all()):
        return Figures.none(NOTHING)
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
        mean = max(mean, most if dtype == "float32" else 0)
        failure = ""
        if figures[1] > most:
            failure = f"differs by {figures[1]:.1e} of the scale, over {most:.0e} ({dtype})"
        elif figures[2] > mean:
            failure = f"differs by {figures[2]:.1e} of the reference's RMS, over {mean:.0e} ({dtype})"
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
    fresh: Callable[[], torch.nn.Module],
    examples: Sequence[Example],
    *,
    dtype: str,
    bits: int | None = None,
    plain: PlainPorts | None = None,
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
        plain: Of a quantized port: what shows that it is right. Its outputs against the original's are only reported.
        others: Candidates for one more input set: the first that the original takes is used.
        on_outputs: Called with the port's outputs of each example.
    """
    half_precision_experts()
    run = _Run(ported, dtype, bits, plain, on_outputs)
    remarks: list[str] = []
    with remarked(remarks.append), random_states_kept():
        for example in examples:
            run.compare(call_original(fresh, example, _later(example, "again", "a third time")))
        run.compare_first(fresh, others() if others is not None else (), _later(examples[0], "after other inputs"))
        unsteady = run.first_differs and _unsteady(fresh, examples[0])
    return PortParity(
        dtype,
        bits,
        (*run.rows, *(_worst(rows) for rows in run.exact.values())),
        notes=tuple(dict.fromkeys([*run.notes, *remarks])),
        problems=tuple(run.problems),
        weights=plain.weights if plain is not None else None,
        stale=None if run.first_differs else run.stale,
        unsteady=unsteady,
    )


def _later(example: Example, *names: str) -> list[Example]:
    return [replace(example, name=f"{example.name} {name}") for name in names]


def _unsteady(fresh: Callable[[], torch.nn.Module], example: Example) -> bool:
    """Whether the original gives something else when it is made and called anew."""
    once, anew = (call_original(fresh, example).first.outputs for _ in range(2))
    return any(not torch.allclose(once[name], anew[name], equal_nan=True) for name in once)


@dataclass
class _Run:
    """One verification of a port: arguments as of ``verify_port``, and what it has found so far."""

    ported: nn.Module
    dtype: str
    bits: int | None
    plain: PlainPorts | None
    on_outputs: Callable[[Example, Mapping[str, mx.array]], None] | None
    rows: list[OutputComparison] = field(default_factory=list)
    exact: dict[str, list[OutputComparison]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    stale: StateChange | None = None
    first_differs: bool = False

    @property
    def failed(self) -> int:
        """How much of what was compared differs."""
        rows = itertools.chain(self.rows, *self.exact.values())
        return len(self.problems) + sum(not row.passed for row in rows)

    def compare_first(
        self, fresh: Callable[[], torch.nn.Module], candidates: Iterable[Example], later: Sequence[Example]
    ) -> None:
        """Compare the first of some inputs that the original takes."""
        refused: list[str] = []
        for candidate in candidates:
            try:
                wanted = call_original(fresh, candidate, later)
            except Exception as error:  # the original's own limits on its inputs, in its own words
                refused.append(f"{candidate.name} not compared: the original raises {type(error).__name__}")
                continue
            if wanted.first.has_only_nan:
                refused.append(f"{candidate.name} not compared: the original gives nothing but NaN")
                continue
            self.compare(wanted)
            refused = [note for note in refused if not note.startswith(candidate.name)]
            break
        self.notes += refused

    def compare(self, wanted: OriginalCalls) -> None:
        """Run the port as the original was run, and compare what each call gives."""
        before = self.failed
        with ExitStack() as kept:
            for port in (self.ported, self.plain and self.plain.original):
                kept.enter_context(state_kept(port) if port is not None else nullcontext())
            for number, (example, result) in enumerate(wanted.calls):
                self._compare_call(example, result)
                if self.failed > before:  # what follows from a difference differs too
                    self.first_differs |= not number
                    self.stale = self.stale or wanted.change
                    break
        self.notes += filter(None, [wanted.note, wanted.ties])
        if self.plain is not None:
            self._compare_dequantized(self.plain.dequantized, *wanted.calls[0])

    def _compare_call(self, example: Example, wanted: CallResult[torch.Tensor]) -> None:
        if not wanted.outputs and not wanted.written:
            self.problems.append(f"{example.name}: the original returns no tensor, so nothing was compared")
            return
        try:
            ours = call_port(self.ported, example, wanted.written)
            original = None if self.plain is None else call_port(self.plain.original, example, wanted.written)
        except Exception as error:  # emitted code: whatever it raises is a fault of the port
            self.problems.append(f"{example.name}: the port raises {type(error).__name__}: {error}")
            return
        if self.on_outputs is not None:
            self.on_outputs(example, ours.outputs)
        if len(wanted.outputs) != len(ours.outputs):
            counts = f"{len(ours.outputs)} arrays, the original {len(wanted.outputs)}"
            self.problems.append(f"{example.name}: the port gives {counts}")
            return
        for name, _, expected in _pairs(ours, wanted):
            self.notes.extend(f"{example.name}, {name}: the original gives {weak}" for weak in _weak(expected))
        theirs = _in_mlx(wanted)
        self.rows += self._compared(example, ours, theirs, self.bits)
        if original is not None:
            rows = self._compared(example, original, theirs, None, ORIGINAL_WEIGHTS)
            self.exact.setdefault(ORIGINAL_WEIGHTS, []).extend(rows)

    def _compare_dequantized(self, dequantized: nn.Module, example: Example, wanted: CallResult[torch.Tensor]) -> None:
        """The packed weights and the values that they stand for give the same, both in float32."""
        given = example.copied(torch.float32)
        try:
            with state_kept(self.ported), computing_in_float32(self.ported) as ported:
                ours = call_port(ported, given, wanted.written)
            with state_kept(dequantized):
                theirs = call_port(dequantized, given, wanted.written)
        except Exception as error:  # in its own dtype it has run, and is compared with the original
            said = f"{type(error).__name__}: {error}"
            self.notes.append(f"{example.name}: not compared with dequantized weights, in float32 it raises {said}")
            return
        rows = self._compared(given, ours, theirs, None, DEQUANTIZED)
        self.exact.setdefault(DEQUANTIZED, []).extend(rows)

    def _compared(
        self,
        example: Example,
        ours: CallResult[mx.array],
        theirs: CallResult[mx.array],
        bits: int | None,
        compared: str = "",
    ) -> Iterator[OutputComparison]:
        for name, got, expected in _pairs(ours, theirs):
            found = _compared(got, expected, self.dtype, bits)
            noise = ""
            # What cannot be compared at all (other shapes, NaN) is no noise.
            if bits is not None and self.plain is not None and math.isfinite(found.relative):
                noise, found = found.failure, found._replace(failure="")
            row = OutputComparison(example.name, name, tuple(got.shape), **found._asdict(), passed=not found.failure)
            yield replace(row, compared=compared, warning=noise)


def _in_mlx(result: CallResult[torch.Tensor]) -> CallResult[mx.array]:
    outputs = {name: from_torch(tensor) for name, tensor in result.outputs.items()}
    return CallResult(outputs, {index: from_torch(tensor) for index, tensor in result.written.items()})


def _worst(rows: Sequence[OutputComparison]) -> OutputComparison:
    """The row of those of one exact comparison that says most."""
    worst = max(rows, key=lambda row: (not row.passed, row.relative))
    return replace(worst, compared=f"{worst.compared} (worst of {len(rows)})")


def _pairs(ours: CallResult[mx.array], theirs: CallResult[Array]) -> Iterator[tuple[str, mx.array, Array]]:
    """What is compared: the outputs in order, and the inputs that the call has written."""
    for (name, wanted), got in zip(theirs.outputs.items(), ours.outputs.values(), strict=True):
        yield name, got, wanted
    for index, wanted in theirs.written.items():
        yield f"input {index} after the call", ours.written[index], wanted
