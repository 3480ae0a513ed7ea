"""What the verification of a port found: every output that was compared, and what to do where one differs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from mlxport.parity.generation_report import Generation
from mlxport.parity.held_state import StateChange
from mlxport.parity.parity_report import Divergence, WeightCheck
from mlxport.parity.task_report import TaskParity

__all__ = ["NOTHING", "OutputComparison", "PortParity"]

NOTHING = "the original gives nothing but NaN, so nothing was compared"
_MOST_NAMES = 6


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
        compared: What was compared with what, where it is not the output with the original's.
        warning: What is less than its bits let expect, where that is no fault.
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
    compared: str = ""
    warning: str = ""

    @property
    def title(self) -> str:
        """What was compared, of which output."""
        return f"{self.compared}{': ' if self.compared else ''}{self.inputs}, {self.name}"

    def summary(self) -> str:
        """One line for a terminal."""
        verdict = "FAILED" if not self.passed else f"warning: {self.warning}" if self.warning else "ok"
        figures = f"max {self.max_abs:.2e} ({self.relative:.1e} of the scale), cosine {self.cosine:.7f}"
        return f"{self.title} {list(self.shape)}: {figures}, {verdict}"


@dataclass(frozen=True)
class PortParity:
    """The verification of a port.

    Attributes:
        dtype: Main floating dtype of the port.
        bits: Fewest bits of a quantized module, None when nothing is quantized.
        comparisons: Every output of every input set; of a quantized port also the worst of each exact comparison.
        divergence: Where a failing port goes wrong.
        notes: What was not covered, and why.
        mode: Distinguishes it from the other reports.
        problems: What is wrong besides values: a call that raises, stored weights that are not the original's.
        weights: Packed weights against the original's, None when nothing is quantized.
        stale: Where only calls after the first differ: what the original's first call changes of what it holds.
        unsteady: Whether the original itself gives something else when it is made and called anew.
        generation: What a text written on caches showed, where the port has some.
        task: What the results of its task showed, where it has one.
    """

    dtype: str
    bits: int | None
    comparisons: tuple[OutputComparison, ...]
    divergence: Divergence | None = None
    notes: tuple[str, ...] = ()
    mode: str = "ported"
    problems: tuple[str, ...] = ()
    weights: WeightCheck | None = None
    stale: StateChange | None = None
    unsteady: bool = False
    generation: Generation | None = None
    task: TaskParity | None = None

    @property
    def passed(self) -> bool:
        """Whether everything is within its bound."""
        weights = self.weights is None or self.weights.passed
        if any(part is not None and part.failures for part in (self.generation, self.task)):
            return False
        return weights and all(item.passed for item in self.comparisons) and not self.problems

    @property
    def nothing_compared(self) -> bool:
        """Whether it failed, and only since the original gives no number to compare with."""
        failed = [item for item in self.comparisons if not item.passed]
        if self.problems or not (self.weights is None or self.weights.passed):
            return False
        return bool(failed) and all(item.failure == NOTHING for item in failed)

    @property
    def first_call_differs(self) -> bool:
        """Whether it fails where a first call of each can be followed until they part."""
        return not (self.passed or self.nothing_compared or self.stale or self.unsteady)

    @property
    def hint(self) -> str:
        """What to do about a failure; empty where it is a fault of the port."""
        if self.nothing_compared:
            return "give an example for which the original computes numbers"
        if self.unsteady or (self.stale is not None and self.stale.attributes):
            return (
                "keep what a later call needs in a buffer (self.register_buffer in __init__; the forward may write it "
                "or assign to it), or let the forward take it as an input and return it"
            )
        return ""

    def with_wrong(self, wrong: Sequence[str]) -> Self:
        """The same, where the stored weights ``wrong`` are not the original's."""
        problem = f"stored weights differ from the original's: {', '.join(wrong[:8])}"
        return replace(self, problems=(*self.problems, problem)) if wrong else self

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
            "weights": self.weights.to_json() if self.weights else None,
            **({"generation": asdict(self.generation)} if self.generation else {}),
            **({"task": self.task.to_json()} if self.task else {}),
        }

    def summary(self) -> str:
        """Lines for a terminal."""
        lines = [item.summary() for item in self.comparisons]
        if self.weights is not None:
            lines.append(self.weights.summary())
        if self.generation is not None:
            lines.append(self.generation.summary())
        if self.task is not None:
            lines.append(self.task.summary())
        if self.divergence is not None:
            lines.append(self.divergence.summary())
        lines += [f"wrong: {line}" for line in self.problems]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def failure_message(self) -> str:
        """What is wrong, for the error's message; empty when the output passed."""
        if self.passed:
            return ""
        failures = [f"{c.title}: {c.failure}" for c in self.comparisons if not c.passed]
        failures += self.weights.failures if self.weights is not None else ()
        failures += self.generation.failures if self.generation is not None else ()
        failures += self.task.failures if self.task is not None else ()
        lines = [self._verdict(), *failures[:8], *self.problems]
        if self.stale is not None:
            lines.append(_told(self.stale))
        if self.divergence is not None:
            lines.append(self.divergence.summary())
        return "\n  ".join(lines)

    def _verdict(self) -> str:
        if self.nothing_compared:
            return "the port is not verified"
        if self.stale is not None:
            return "the port computes what the original computes only when it is first called"
        if self.unsteady:
            return (
                "the original gives something else each time that it is made and called anew: it keeps state outside "
                "of the module (a global, an attribute of a class, a closure) or draws random numbers"
            )
        return "the port does not compute what the original computes"


def _told(change: StateChange) -> str:
    """Which of what a call changes is lost in a port, and so the cause."""
    if change.attributes:
        return f"the original's calls change {_listed('attribute', change.attributes)}, which a port holds fixed"
    return f"the original's calls write {_listed('buffer', change.kept)}"


def _listed(kind: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES]) + (" …" if len(names) > _MOST_NAMES else "")
    return f"the {kind}{'s' if len(names) > 1 else ''} {shown}"
