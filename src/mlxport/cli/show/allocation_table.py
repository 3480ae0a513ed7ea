"""Print what was chosen for each module, by layer and kind: to stdout, through rich."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlxport.progress import format_bytes

if TYPE_CHECKING:
    from mlxport.allocate import AllocationReport, Choice

_WIDEST = 240


def show_allocation(report: AllocationReport, console: Console) -> None:
    """The limit and what is used of it, the settings as a table, and how they were chosen."""
    layers: dict[str, dict[str, Choice]] = {}
    for choice in report.choices:
        layer, kind = choice.place
        layers.setdefault(layer, {})[kind] = choice
    alone = layers.pop("", {})
    kinds = list(dict.fromkeys(kind for row in layers.values() for kind in row))
    if kinds:
        _print_table(layers, kinds, console)
    for kind, choice in alone.items():
        console.print(escape(f"{kind:<16} {choice.short()}"))
    share = report.used_bytes / report.limit_bytes if report.limit_bytes else 0.0
    console.print(
        escape(
            f"{report.target}: {format_bytes(report.used_bytes)} of {format_bytes(report.limit_bytes)} used "
            f"({share:.1%}, {report.measure}), {report.bits_per_weight:.3f} bits per weight"
        )
    )
    if report.memory:
        parts = {name: format_bytes(report.memory[f"{name}_bytes"]) for name in ("weight", "cache", "workspace", "gpu")}
        console.print(
            escape(
                f"memory: {parts['weight']} of weights, a cache of {parts['cache']}, "
                f"{parts['workspace']} to work with; {parts['gpu']} for the GPU"
            )
        )
    console.print(escape(f"predicted divergence: {report.damage:.3g} nats per token; {report.predictor}"))
    if not report.exact:
        console.print("the choice may not be the very best: too many are nearly as good")


def _print_table(layers: dict[str, dict[str, Choice]], kinds: Sequence[str], console: Console) -> None:
    """One row for each run of layers that are given the same."""
    table = Table(title="bits/group size by layer", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("layer", justify="right")
    for kind in kinds:
        table.add_column(escape("\n".join(kind.split("."))), justify="right", no_wrap=True, vertical="bottom")  # type: ignore[arg-type]
    rows: list[tuple[list[str], tuple[str, ...]]] = []
    for layer, given in layers.items():
        cells = tuple(given[kind].short() if kind in given else "" for kind in kinds)
        if rows and rows[-1][1] == cells:
            rows[-1][0].append(layer)
        else:
            rows.append(([layer], cells))
    for names, cells in rows:
        table.add_row(names[0] if len(names) == 1 else f"{names[0]}–{names[-1]}", *cells)
    wide = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
    console.width = max(console.width, wide)
    console.print(table)
