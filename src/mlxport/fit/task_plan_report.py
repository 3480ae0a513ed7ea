"""What a plan says of a model that is run for its task, and does not generate text with a cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mlxport.fit.fit_report import FitRow
from mlxport.fit.hardware import Machine

__all__ = ["TaskPlan"]


@dataclass(frozen=True)
class TaskPlan:
    """What a model becomes, what it is run for, and what that takes of a machine.

    Attributes:
        source: The model, as it was named.
        machine: The machine.
        layout: Name of the layout that ``convert`` chooses.
        becomes: That layout in words.
        task: What it is for, as Hugging Face names tasks; None where nothing says.
        command: How it is run, with DST for the folder.
        counted: The inputs that the memory is counted for, each in words; empty where it is of the weights alone.
        parameters: Number of weights.
        rows: Every setting; without a cache, context and rate.
        recommended: Name of the recommended row, empty where nothing fits.
        notes: Remarks.
    """

    source: str
    machine: Machine
    layout: str
    becomes: str
    task: str | None
    command: str
    counted: tuple[str, ...]
    parameters: int
    rows: tuple[FitRow, ...]
    recommended: str = ""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values only, for ``--json``."""
        return {**asdict(self), "rows": [row.to_json() for row in self.rows]}
