"""The report as one HTML page: no scripts, nothing fetched, everything from a model escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mlxport.progress import format_bytes
from mlxport.quality import plots
from mlxport.quality.module_errors import ModuleError
from mlxport.quality.quality_report import QualityReport

__all__ = ["render"]

# Controls that HTML has no place for, halves of characters, and marks that reorder what stands beside them.
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")
_WORST = 10


def render(report: QualityReport) -> str:
    """The page.

    Args:
        report: The figures; its texts may hold anything.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_fit
    )
    environment.filters.update(
        bytes=format_bytes,
        figure=_figure,
        percent=_percent,
        count=lambda n: f"{n:,}",
        visible=_visible,
        change=_change,
        number=_number,
    )
    source = files("mlxport.quality").joinpath("report.html.jinja").read_text(encoding="utf-8")
    worst = sorted(report.modules, key=lambda module: -_sortable(module.shown))[:_WORST]
    return environment.from_string(source).render(report=report, worst=worst, charts=_charts(report))


def _fit(value: Any) -> Any:
    """Text without what no page should hold; what is markup already is left alone."""
    if isinstance(value, Markup):
        return Markup(_UNFIT.sub("\ufffd", value))
    return _UNFIT.sub("\ufffd", value) if isinstance(value, str) else value


def _charts(report: QualityReport) -> dict[str, Any]:
    """Name to plot (of grids also their least and largest value), None where there is nothing to show."""
    charts: dict[str, Any] = dict.fromkeys(("layers", "bits", "kl", "errors", "settings"))
    if len(report.layers) > 1:
        points = [
            (number, layer.relative, f"block {number} ({layer.module}): {_percent(layer.relative)}")
            for number, layer in enumerate(report.layers)
        ]
        charts["layers"] = plots.line("Error of the hidden state after each block", points, "block", "error")
    blocks = sorted({module.layer for module in report.modules if module.layer is not None})
    every, inside = report.modules, [module for module in report.modules if module.layer is not None]
    if len(blocks) > 1:
        shares = [(number, _mean_bits([m for m in inside if m.layer == number])) for number in blocks]
        charts["bits"] = plots.bars(
            "Bits per weight of each block",
            [(n, bits, f"block {n}: {bits:.2f} bits") for n, bits in shares],
            "block",
            "bits",
        )
    if any(value > 0 for _, value in report.quality.kl_levels):
        charts["kl"] = plots.curve(
            "How divergence is distributed over tokens",
            [
                (share, kl, f"{share:g}% of the tokens: below {_figure(kl)} nats")
                for share, kl in report.quality.kl_levels
            ],
            "share of tokens below",
            "error",
        )
    if inside and any(module.shown > 0 for module in every):
        charts["errors"] = _grid("Error of each module by block", every, blocks, lambda m: m.shown, "error")
    if inside and len({round(module.bits_per_weight, 2) for module in every}) > 1:
        charts["settings"] = _grid("Bits of each module by block", every, blocks, lambda m: m.bits_per_weight, "bits")
    return charts


def _grid(
    name: str,
    modules: Sequence[ModuleError],
    blocks: Sequence[int],
    value: Callable[[ModuleError], float],
    meaning: plots.Meaning,
) -> tuple[Markup, float, float]:
    """A heatmap of modules by blocks, others in a column of their own, with its least and its largest value."""
    cells = {(m.kind, m.layer): (value(m), _tooltip(m)) for m in modules}
    rows = list(dict.fromkeys(module.kind for module in modules))
    outside: list[int | None] = [None] if any(module.layer is None for module in modules) else []
    finite = [found for found, _ in cells.values() if math.isfinite(found)] or [0.0]
    return plots.heatmap(name, rows, [*outside, *blocks], cells, meaning), min(finite), max(finite)


def _tooltip(module: ModuleError) -> str:
    outputs = "" if module.output_error is None else f"error of its outputs {_percent(module.output_error)}, "
    weights = f"of its weights {_percent(module.error)}"
    return f"{module.path}: {outputs}{weights}, {module.bits_per_weight:.2f} bits per weight"


def _visible(text: str) -> str:
    """A piece of text that shows: spaces and line ends as signs where there is nothing else, and nothing as the end."""
    if text.strip():
        return text
    return text.replace("\r", "").replace("\n", "⏎\n").replace(" ", "·").replace("\t", "→") or "(end)"


def _mean_bits(modules: Sequence[ModuleError]) -> float:
    weights = sum(module.parameters for module in modules)
    return sum(module.bits_per_weight * module.parameters for module in modules) / max(weights, 1)


def _sortable(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _figure(value: float | None, digits: int = 3) -> str:
    if value is None or not math.isfinite(value):
        return "not finite"
    if value and (abs(value) < 10.0**-digits or abs(value) >= 1e6):
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def _change(value: float) -> str:
    """A relative change."""
    return f"{100 * value:+.1f}%" if value < 9.995 else f"{_figure(1 + value)} times"


def _number(count: int) -> str:
    """A large number in words that are short."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.4g} {word}"
    return f"{count:,}"


def _percent(value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    return f"{100 * value:.2g}%" if 0 < abs(value) < 0.01 else f"{100 * value:.1f}%"
