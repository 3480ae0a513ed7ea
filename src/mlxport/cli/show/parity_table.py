"""Print a verification: to stdout, through rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlxport.cli.show.console import standard_console

if TYPE_CHECKING:
    from mlxport.parity import ParityReport
    from mlxport.parity.port_report import PortParity

__all__ = ["show_any_parity", "show_parity"]


def show_any_parity(report: ParityReport | PortParity, console: Console | None = None) -> None:
    """The parity table of a conversion or of a port."""
    if report.mode in ("ported", "pictures"):
        (console or standard_console()).print(escape(report.summary()))
    else:
        show_parity(report, console)  # type: ignore[arg-type]


def show_parity(report: ParityReport, console: Console | None = None) -> None:
    """The parity table."""
    console = console or standard_console()
    table = Table(title=f"parity ({report.mode}, {report.tokens} tokens)", title_justify="left", title_style="bold")
    columns = ("comparison", "max abs", "mean abs", "cosine", "top-1", "KL", "")
    for column in columns:
        table.add_column(column, justify="left" if column == "comparison" else "right")
    for row in report.comparisons:
        figures = (
            f"{row.max_abs:.2e}",
            f"{row.mean_abs:.2e}",
            f"{row.cosine_mean:.7f}",
            f"{row.top1:.1%}",
            f"{row.kl_mean:.2e}",
        )
        table.add_row(row.name, *figures, "[green]pass[/]" if row.passed else "[red]FAIL[/]")
    console.print(table)
    if report.weights is not None:
        console.print(escape(report.weights.summary()))
    warnings, notes = (f"warning: {w}" for w in report.warnings), (f"note: {n}" for n in report.notes)
    for line in (*(f"wrong: {p}" for p in report.problems), *warnings, *notes):
        console.print(escape(line))
    if report.positions is not None:
        console.print(escape(report.positions.summary()))
    if report.generation is not None:
        console.print(escape(report.generation.summary()))
    if report.alone:
        console.print(escape(f"compared: {report.alone}"))
