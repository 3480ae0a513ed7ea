"""Print what a conversion did, or would do, for a person: to stdout, through rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from mlxport.cli.show.console import standard_console
from mlxport.cli.show.conversion_plan import show_plan
from mlxport.cli.show.parity_table import show_any_parity
from mlxport.cli.show.quality_figures import show_quality

if TYPE_CHECKING:
    from mlxport.convert.convert_report import ConvertReport

__all__ = ["show_conversion"]


def show_conversion(report: ConvertReport) -> None:
    """The plan, and unless it was a dry run the verification and where the output is."""
    console = standard_console()
    if report.allocation is not None:
        from mlxport.cli.show.allocation_table import show_allocation

        show_allocation(report.allocation, console)
    show_plan(report, console)
    for note in report.notes:
        console.print(f"note: {escape(note)}")
    if report.dry_run:
        console.print(f"dry run: nothing was written to {escape(str(report.destination))}{escape(_alone(report))}")
        return
    if report.distilled is not None:
        console.print(escape(report.distilled.summary()))
    if report.parity is not None:
        show_any_parity(report.parity, console)
    if report.tokenizer is not None:
        console.print(escape(report.tokenizer.summary()))
        for note in report.tokenizer.notes:
            console.print(f"note: {escape(note)}")
    if report.not_verified:
        console.print(f"[yellow]{escape(report.not_verified)}[/]")
        console.print(f"to verify: mlxport verify {escape(str(report.destination))} --against SRC")
    if report.quality is not None:
        show_quality(report.quality, console, report.destination / "report.html")
    console.print(f"done: {escape(str(report.destination))}{escape(_alone(report))}")


def _alone(report: ConvertReport) -> str:
    """What the last line adds where the output is not the whole model."""
    return f" (the text model alone, without {report.left_out})" if report.left_out else ""
