"""Print what of a model fits a machine: to stdout, through rich."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlxport.cli.show.console import standard_console
from mlxport.fit.fit_report import HEADROOM, rate_in_words
from mlxport.fit.hardware import running_on
from mlxport.progress import format_bytes, roughly

if TYPE_CHECKING:
    from mlxport.fit import FitReport, FitRow

_COLUMNS = ("", "bits", "disk", "memory", "GPU memory", "longest\ncontext", "tokens/s")

_WIDEST = 200
# From so many bits a weight on, scales included, there is little left to lose.
_MANY_BITS = 5.0


def show_fit(report: FitReport, console: Console | None = None) -> None:
    """The machine, the table, and what to do."""
    out = console or standard_console()
    machine = report.machine
    speed = f", {machine.bandwidth_gb_s:g} GB/s" if machine.bandwidth_gb_s is not None else ""
    out.print(escape(f"{report.source} on {machine.name}: {format_bytes(machine.gpu_bytes)} for the GPU{speed}"))
    usable = [row for row in report.rows if not row.problem]
    cache, workspace = (format_bytes(part) for part in (usable[0].cache_bytes, usable[0].workspace_bytes))
    bits = f" of {report.kv_bits} bits" if report.kv_bits is not None else ""
    out.print(f"{report.context:,} tokens of context: a cache{bits} of {cache}, and {workspace} to work with")
    for line in _pictures(report):
        out.print(escape(line), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, title_justify="left")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for row in usable:
        table.add_row(*_cells(row), style="bold" if row.name == report.recommended else None)
    out.width = max(out.width, out.measure(table, options=out.options.update(max_width=_WIDEST)).maximum)
    out.print(table)
    out.print("memory: the peak of MLX; tokens/s: of generating (reading a prompt is bound by computing)")
    notes = (f"note: {note}" for note in report.notes)
    if any(row.tight for row in usable):
        out.print(f"tight: less than {format_bytes(HEADROOM)} left, and a run may take more than is planned")
    for line in (*_calibrating(report), *problem_lines(report.rows), *notes, *_advice(report)):
        out.print(escape(line))


def _pictures(report: FitReport) -> list[str]:
    """What pictures add, and how the model is asked."""
    if (seen := report.pictures) is None:
        return []
    found, read = seen.picture, ""
    if seen.workspace_bytes is not None:
        read = f", {format_bytes(seen.workspace_bytes)} to read one"
    tiles = f" in {found.tiles} tiles" if found.tiles > 1 else ""
    marks = f" and {found.marks} that mark it" if found.marks else ""
    return [
        f"runs {seen.runs}",
        f"a picture of {found.width} x {found.height} pixels: {found.patches:,} patches{tiles}, {found.tokens:,} tokens"
        f"{marks} of the context",
        f"what reads pictures: {format_bytes(seen.tower_bytes)} of weights that -q leaves as they are{read}",
    ]


def _calibrating(report: FitReport) -> list[str]:
    found = report.calibration
    if found is None:
        return []
    taken = f"about {roughly(found.seconds)} and {format_bytes(found.peak_bytes)} of memory"
    return [f"calibrating (-q 4 --calibrate default): {taken} on this machine ({running_on()})"]


def memory_left(row: FitRow) -> str:
    """What a row leaves of the GPU's memory, in rich's markup."""
    spare = format_bytes(abs(row.spare_bytes))
    room = f"[yellow]{spare} left, tight[/]" if row.tight else f"[green]{spare} left[/]"
    return room if row.fits else f"[red]{spare} short[/]"


def _cells(row: FitRow) -> tuple[str, ...]:
    room = memory_left(row)
    longest = f"{row.longest_context:,}" if row.longest_context else "none"
    speed = rate_in_words(row.tokens_per_second)
    memory = format_bytes(row.memory_bytes)
    return (escape(row.name), f"{row.bits_per_weight:.2f}", format_bytes(row.disk_bytes), memory, room, longest, speed)


def problem_lines(rows: Iterable[FitRow]) -> list[str]:
    """Why some settings are not possible, a line for each reason."""
    names: dict[str, list[str]] = {}
    for row in rows:
        if row.problem:
            names.setdefault(row.problem, []).append(row.name)
    return [f"not {', '.join(listed)}: {problem}" for problem, listed in names.items()]


def _command(report: FitReport, how: str) -> str:
    dtype = f" --dtype {report.dtype}" if report.dtype else ""
    alone = " --text-only" if report.left_out else ""
    return f"mlxport convert {shlex.quote(report.source)} DST{how}{dtype}{alone}"


def _better(report: FitReport) -> list[str]:
    """Where few bits are left: bits by module and calibration lose less in the same memory."""
    best, machine = report.rows[0], report.machine
    if best.quantize is None or best.bits_per_weight >= _MANY_BITS:
        return []
    if report.kv_bits is not None or report.pictures is not None:  # --fit plans without such a cache, for text alone
        return []
    name = f' "{machine.name}"' if machine.bandwidth_gb_s is not None else ""  # else it is only known as the one here
    calibrated = report.calibration is not None
    calibrate = " --calibrate default" if calibrated else ""
    command = _command(report, f" --fit{name} --context {report.context}{calibrate}")
    return [f"to lose less, with bits chosen by module{' and calibrated' * calibrated}: {command}"]


def _advice(report: FitReport) -> list[str]:
    if report.recommended:
        best = report.rows[0]
        quantize = f" -q {best.quantize}" if best.quantize else ""
        few = [] if best.keeps_four_bits else ["what fits keeps less than four bits a weight: expect it to lose much"]
        command = f"to convert: {_command(report, quantize)}"
        return [*few, f"recommended: {best.name}", command, *_better(report)]
    lines = [f"nothing fits {report.machine.name} with {report.context:,} tokens of context"]
    if report.shorter_setting:
        lines.append(f"what would: {report.shorter_setting} with up to {report.shorter_context:,} tokens of context")
    if report.larger_machines:
        lines.append(f"what would: {report.larger_setting} on {', '.join(report.larger_machines)}")
    elif report.larger_setting:
        lines.append(f"no machine of the table has the memory for {report.larger_setting}")
    return lines
