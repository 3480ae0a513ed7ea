"""Print what a conversion will write: to stdout, through rich."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlxport.fit.hardware import running_on
from mlxport.progress import format_bytes, listed, roughly

if TYPE_CHECKING:
    from mlxport.convert.convert_report import ConvertReport
    from mlxport.types import Plan

__all__ = ["show_plan"]

# Buffers that older files hold beside the weights: counters of training, and what is computed anew. Nobody misses them.
_NO_WEIGHTS = frozenset({"num_batches_tracked", "position_ids", "token_type_ids", "inv_freq"})


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
        *([("layout", report.layout)] if report.layout else []),
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
        console.print(f"not quantized: {escape(listed(paths, 3))}: {escape(reason)}")
    if report.left_out:
        console.print(f"left out: {escape(report.left_out)}")
    roots = tuple(part.name for part in plan.left_out)
    dropped = [name for name in plan.dropped if not any(name == root or name.startswith(f"{root}.") for root in roots)]
    dropped = [name for name in dropped if name.rpartition(".")[2] not in _NO_WEIGHTS]
    if dropped:
        console.print(f"not used by the model: {escape(listed(dropped, 5))}")


def _calibration_row(plan: Plan) -> list[tuple[str, str]]:
    found = plan.calibration
    if found is None:
        return []
    where = f"{found.tokens:,} tokens of {escape(found.text)}"
    taken = f"about {roughly(found.seconds)} on this machine ({running_on()}), {format_bytes(found.peak_bytes)}"
    return [("calibration", f"{where}: {taken}")]
