"""What the comparison of a task's results found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["TaskParity"]

_ALLOWED = 1e-4  # of the largest value, in float32: scores and vectors are a few sums away from the outputs compared


@dataclass(frozen=True)
class TaskParity:
    """What running both models on the same inputs showed.

    Attributes:
        task: Its name.
        inputs: How many were compared.
        what: What of their results.
        error: The largest difference, relative to the largest value of the original's.
        wrong: The first result that differs beyond numbers.
        judged: Whether it must be equal: in float32, unquantized.
        missing: Why nothing was compared.
    """

    task: str
    inputs: int = 0
    what: str = ""
    error: float = 0.0
    wrong: str = ""
    judged: bool = True
    missing: str = ""

    @property
    def failures(self) -> list[str]:
        """What makes the output unfit."""
        if not self.judged or self.missing:
            return []
        if self.wrong:
            return [f"{self.task}: {self.wrong}"]
        if self.error > _ALLOWED:
            return [f"{self.task}: {self.what} differ by {self.error:.2g} of the scale, {_ALLOWED:.0e} allowed"]
        return []

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {**asdict(self), "passed": not self.failures}

    def summary(self) -> str:
        """One line for a terminal."""
        if self.missing:
            return f"{self.task}: not compared with the original's pipeline: {self.missing}"
        found = f"{self.what} of {self.inputs} inputs"
        if self.wrong:
            return f"{self.task}: {found}: {self.wrong}{'' if self.judged else ' (not judged: rounded)'}"
        said = f", within {self.error:.1e} of the scale" if self.error else ""
        return f"{self.task}: {found} as the original's pipeline{said}"
