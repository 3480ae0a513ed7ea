"""Print what was lost: to stdout, through rich."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from mlxport.cli.show.console import standard_console
from mlxport.progress import three_digits

if TYPE_CHECKING:
    from mlxport.quality.quality_report import QualityReport

__all__ = ["show_quality"]


def show_quality(report: QualityReport, console: Console | None = None, page: Path | None = None) -> None:
    """The verdict, the figures, and where the page is."""
    out = console or standard_console()
    out.print(escape(report.verdict))
    out.print(escape(report.quality.summary()))
    if report.baseline is not None:
        out.print(f"rounded to nearest at the same size: {escape(report.baseline.summary())}")
    if report.speed is not None:
        out.print(f"{three_digits(report.speed.tps)} tokens per second on {escape(report.speed.device)}")
    if report.predicted is not None:
        out.print(f"predicted for {escape(report.predicted.machine)}: {report.predicted.answer}")
    for note in report.notes:
        out.print(f"note: {escape(note)}")
    out.print(f"report: {escape(str(page or report.page))}")
