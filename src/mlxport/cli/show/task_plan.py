"""Print what a model becomes that is run for its task, and what that takes: to stdout, through rich."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlxport.cli.show.console import standard_console
from mlxport.cli.show.machine_plan import memory_left, problem_lines
from mlxport.progress import format_bytes

if TYPE_CHECKING:
    from mlxport.fit import TaskPlan

__all__ = ["show_task_plan"]

_COLUMNS = ("", "bits", "disk", "memory", "GPU memory")


def show_task_plan(plan: TaskPlan, console: Console | None = None) -> None:
    """What it becomes and runs, the table, and the command that converts it."""
    out = console or standard_console()
    machine = plan.machine
    out.print(escape(f"{plan.source} on {machine.name}: {format_bytes(machine.gpu_bytes)} for the GPU"))
    out.print(escape(f"becomes  {plan.becomes} (layout {plan.layout}), {plan.parameters:,} parameters"), soft_wrap=True)
    if plan.task:
        out.print(escape(f"runs     {plan.task}: {plan.command}"), soft_wrap=True)
    if plan.counted:
        out.print(escape(f"counted  {', '.join(plan.counted)}"), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for row in plan.rows:
        if not row.problem:
            sizes = (format_bytes(row.disk_bytes), format_bytes(row.memory_bytes), memory_left(row))
            cells = (escape(row.name), f"{row.bits_per_weight:.2f}", *sizes)
            table.add_row(*cells, style="bold" if row.name == plan.recommended else None)
    out.print(table)
    for line in (*problem_lines(plan.rows), *(f"note: {note}" for note in plan.notes), *_advice(plan)):
        out.print(escape(line), soft_wrap=True)


def _advice(plan: TaskPlan) -> list[str]:
    best = next((row for row in plan.rows if row.name == plan.recommended), None)
    if best is None:
        return [f"nothing fits {plan.machine.name}"]
    quantize = f" -q {best.quantize}" if best.quantize else ""
    return [f"recommended: {best.name}", f"to convert: mlxport convert {shlex.quote(plan.source)} DST{quantize}"]
