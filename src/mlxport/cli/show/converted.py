"""Print what a conversion did, or would do, for a person: to stdout, through rich."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlxport.progress import format_bytes, format_seconds

if TYPE_CHECKING:
    from mlxport.convert.convert_report import ConvertReport
    from mlxport.parity import ParityReport
    from mlxport.parity.port_parity import PortParity
    from mlxport.quality.quality_report import QualityReport
    from mlxport.types import Plan


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)


def show_conversion(report: ConvertReport) -> None:
    """The plan, and unless it was a dry run the verification and where the output is."""
    console = _console()
    if report.allocation is not None:
        from mlxport.cli.show.chosen_bits import show_allocation

        show_allocation(report.allocation, console)
    show_plan(report, console)
    for note in report.notes:
        console.print(f"note: {escape(note)}")
    if report.dry_run:
        console.print(f"dry run: nothing was written to {escape(str(report.destination))}")
        return
    if report.distilled is not None:
        console.print(escape(report.distilled.summary()))
    if report.parity is not None:
        show_any_parity(report.parity, console)
    if report.tokenizer is not None:
        console.print(escape(report.tokenizer.summary()))
    if report.not_verified:
        console.print(f"[yellow]{escape(report.not_verified)}[/]")
        console.print(f"to verify: mlxport verify {escape(str(report.destination))} --against SRC")
    if report.quality is not None:
        show_quality(report.quality, console, report.destination / "report.html")
    console.print(f"done: {escape(str(report.destination))}")


def show_quality(report: QualityReport, console: Console | None = None, page: Path | None = None) -> None:
    """The verdict, the figures, and where the page is."""
    out = console or _console()
    out.print(escape(report.verdict))
    out.print(escape(report.quality.summary()))
    if report.speed is not None:
        out.print(f"{report.speed.tps:.3g} tokens per second on {escape(report.speed.device)}")
    if report.predicted is not None:
        out.print(f"predicted for {escape(report.predicted.machine)}: {report.predicted.answer}")
    for note in report.notes:
        out.print(f"note: {escape(note)}")
    out.print(f"report: {escape(str(page or report.page))}")


def show_plan(report: ConvertReport, console: Console) -> None:
    """Shards, bytes, bits per weight, memory and disk."""
    plan = report.plan
    table = Table(title="plan", title_justify="left", title_style="bold")
    for column, justify in (("file", "left"), ("tensors", "right"), ("size", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for shard in plan.shards:
        table.add_row(shard.filename, str(len(shard.tensors)), format_bytes(shard.nbytes))
    console.print(table)
    settings = Counter(f"{s.mode} {s.bits} bits, group size {s.group_size}" for s in plan.quantized.values())
    rows: list[tuple[str, Any]] = [
        ("parameters", f"{plan.parameters:,}"),
        ("dtype", plan.dtype),
        ("bits per weight", f"{plan.bits_per_weight:.3f}"),
        ("quantized", "; ".join(f"{n} modules with {what}" for what, n in settings.items()) or "nothing"),
        ("peak memory", f"about {format_bytes(plan.peak_bytes)}, verification apart"),
        *_calibration_row(plan),
        ("disk", f"{format_bytes(plan.nbytes)} needed, {format_bytes(report.free_bytes)} free"),
    ]
    for name, value in rows:
        console.print(f"{name:<16} {value}")
    reasons: dict[str, list[str]] = {}
    for path, reason in plan.kept.items():
        reasons.setdefault(reason, []).append(path)
    for reason, paths in reasons.items():
        shown = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        console.print(f"not quantized: {escape(shown)}: {escape(reason)}")
    if plan.dropped:
        shown = ", ".join(plan.dropped[:5]) + (f" and {len(plan.dropped) - 5} more" if len(plan.dropped) > 5 else "")
        console.print(f"not used by the model: {escape(shown)}")


def _calibration_row(plan: Plan) -> list[tuple[str, str]]:
    found = plan.calibration
    if found is None:
        return []
    where = f"{found.tokens:,} tokens of {escape(found.text)}"
    return [("calibration", f"{where}: about {format_seconds(found.seconds)}, {format_bytes(found.peak_bytes)}")]


def show_any_parity(report: ParityReport | PortParity, console: Console | None = None) -> None:
    """The parity table of a conversion or of a port."""
    if report.mode == "ported":
        (console or _console()).print(escape(report.summary()))
    else:
        show_parity(report, console)  # type: ignore[arg-type]


def show_parity(report: ParityReport, console: Console | None = None) -> None:
    """The parity table."""
    console = console or _console()
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
