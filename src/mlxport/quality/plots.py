"""Plots as SVG: colours by CSS variables, so that they follow the page's light or dark scheme; figures as tooltips.

One colour stands for one meaning: errors, of which more is worse, have one, bits another.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, isfinite, log10
from typing import Literal

from markupsafe import Markup

__all__ = ["Meaning", "bars", "curve", "heatmap", "line"]

Meaning = Literal["error", "bits"]

WIDTH, HEIGHT = 340, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 20, 12, 40
_DOTS = 40  # points beyond which a line has no dots


class _Frame:
    """Axes of one plot: places of values, ticks with labels."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y = x, y

    def across(self, value: float) -> float:
        low, high = self.x
        return _LEFT + (value - low) / ((high - low) or 1) * (WIDTH - _LEFT - _RIGHT)

    def down(self, value: float) -> float:
        low, high = self.y
        return HEIGHT - _BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - _TOP - _BOTTOM)

    def draw(
        self,
        name: str,
        x_label: str,
        x_ticks: Sequence[tuple[float, str]],
        y_ticks: Sequence[tuple[float, str]],
        inside: Markup,
        meaning: Meaning,
    ) -> Markup:
        parts = [_svg_open(name, WIDTH, HEIGHT, meaning)]
        for value, label in y_ticks:
            at = self.down(value)
            parts.append(
                Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                    _LEFT, WIDTH - _RIGHT, at, at
                )
            )
            parts.append(_text(_LEFT - 7, at + 4, label, "end"))
        for value, label in x_ticks:
            parts.append(_text(self.across(value), HEIGHT - _BOTTOM + 17, label, "middle"))
        parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 5, x_label, "middle", "axis"))
        return Markup("").join([*parts, inside, Markup("</svg>")])


def line(name: str, points: Sequence[tuple[float, float, str]], x_label: str, meaning: Meaning) -> Markup:
    """Values over whole numbers.

    Args:
        name: What the plot shows, for those who do not see it.
        points: x, y (from 0 up) and tooltip of each.
        x_label: Under the axis.
        meaning: What the colour stands for.
    """
    finite = [point for point in points if isfinite(point[1])]
    ticks = _ticks(max((y for _, y, _ in finite), default=0.0))
    xs = [x for x, _, _ in points]
    frame = _Frame((min(xs, default=0), max(xs, default=1)), (0.0, ticks[-1][0]))
    path = " ".join(f"{frame.across(x):.1f},{frame.down(y):.1f}" for x, y, _ in finite)
    parts = [Markup('<polyline class="stroke" points="{}"/>').format(path)]
    for x, y, title in finite:
        radius = 3.5 if len(finite) <= _DOTS else 2
        parts.append(
            Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>').format(
                frame.across(x), frame.down(y), radius, title
            )
        )
    return frame.draw(name, x_label, _whole(xs), ticks, Markup("").join(parts), meaning)


def bars(name: str, points: Sequence[tuple[float, float, str]], x_label: str, meaning: Meaning) -> Markup:
    """Values over whole numbers as bars; arguments as of ``line``."""
    ticks = _ticks(max((y for _, y, _ in points), default=0.0))
    xs = [x for x, _, _ in points]
    frame = _Frame((min(xs, default=0) - 0.6, max(xs, default=0) + 0.6), (0.0, ticks[-1][0]))
    width = max((frame.across(1) - frame.across(0)) * 0.72, 0.8)
    parts = []
    for x, y, title in points:
        top = frame.down(y)
        parts.append(
            Markup(
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
            ).format(frame.across(x) - width / 2, top, width, max(HEIGHT - _BOTTOM - top, 0.5), title)
        )
    return frame.draw(name, x_label, _whole(xs), ticks, Markup("").join(parts), meaning)


def curve(name: str, points: Sequence[tuple[float, float, str]], x_label: str, meaning: Meaning) -> Markup:
    """Positive values over percentages, on a logarithmic axis; arguments as of ``line``."""
    finite = [(x, max(y, 1e-9), title) for x, y, title in points if isfinite(y)]
    logs = [log10(y) for _, y, _ in finite]
    low, high = floor(min(logs, default=-1)), ceil(max(logs, default=0))
    high = max(high, low + 1)
    step = max(1, ceil((high - low) / 5))
    frame = _Frame((0.0, 100.0), (float(low), float(high)))
    path = " ".join(f"{frame.across(x):.1f},{frame.down(log10(y)):.1f}" for x, y, _ in finite)
    dots = [
        Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="2.5"><title>{}</title></circle>').format(
            frame.across(x), frame.down(log10(y)), title
        )
        for x, y, title in finite
    ]
    y_ticks = [(float(power), _figure(10.0**power)) for power in range(low, high + 1, step)]
    x_ticks = [(float(share), f"{share}%") for share in (0, 25, 50, 75, 100)]
    inside = Markup('<polyline class="stroke" points="{}"/>').format(path) + Markup("").join(dots)
    return frame.draw(name, x_label, x_ticks, y_ticks, inside, meaning)


def heatmap(
    name: str,
    rows: Sequence[str],
    columns: Sequence[int | None],
    cells: dict[tuple[str, int | None], tuple[float, str]],
    meaning: Meaning,
) -> Markup:
    """A grid of values, stronger for larger; it keeps its size, for a container that scrolls.

    Args:
        name: What it shows.
        rows: Their labels.
        columns: Their numbers; None first, where there is what belongs to none.
        cells: Value and tooltip by row and column.
        meaning: What the colour stands for.
    """
    label = 8 + 7.4 * max((len(row) for row in rows), default=1)
    width = min(32.0, max(14.0, 640 / max(len(columns), 1)))
    height, top = 24.0, 6.0
    finite = [value for value, _ in cells.values() if isfinite(value)]
    least, most = min(finite, default=0.0), max(finite, default=0.0)
    whole = (ceil(label + width * len(columns) + 8), ceil(top + height * len(rows) + 40))
    parts = [_svg_open(name, *whole, meaning, fixed=True)]
    for place, row in enumerate(rows):
        parts.append(_text(label - 8, top + height * place + 16, row, "end"))
        for position, column in enumerate(columns):
            if (row, column) not in cells:
                continue
            value, title = cells[row, column]
            share = (value - least) / (most - least) if isfinite(value) and most > least else 1.0
            parts.append(
                Markup(
                    '<rect class="cell" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2" '
                    'fill-opacity="{:.3f}"><title>{}</title></rect>'
                ).format(
                    label + width * position + 1, top + height * place + 1, width - 2, height - 2,
                    0.12 + 0.88 * share, title,
                )
            )  # fmt: skip
    below = top + height * len(rows)
    for value, shown in _whole([n for n in columns if n is not None], max(2, int(width * len(columns) / 26))):
        position = list(columns).index(int(value))
        parts.append(_text(label + width * (position + 0.5), below + 17, shown, "middle"))
    named = "block"
    if None in columns:
        parts.append(_text(label + width / 2, below + 17, "–", "middle"))
        named = "block (–: outside of blocks)"
    parts.append(_text(max(label + width * len(columns) / 2, 90), below + 35, named, "middle", "axis"))
    return Markup("").join([*parts, Markup("</svg>")])


def _svg_open(name: str, width: int, height: int, meaning: Meaning, fixed: bool = False) -> Markup:
    size = Markup(' width="{}" height="{}"').format(width, height) if fixed else Markup("")
    head = Markup('<svg class="{}" role="img" aria-label="{}" viewBox="0 0 {} {}"{}>')
    return head.format(meaning, name, width, height, size)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def _ticks(most: float, count: int = 4) -> list[tuple[float, str]]:
    """From 0 to at least ``most`` in round steps."""
    if not isfinite(most) or most <= 0:
        return [(0.0, "0"), (1.0, "1")]
    power = 10.0 ** floor(log10(most / count))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * count >= most * 0.999999)
    return [(step * number, _figure(step * number)) for number in range(ceil(most / step - 1e-6) + 1)]


def _whole(values: Sequence[float], most: int = 8) -> list[tuple[float, str]]:
    """Some of the numbers, evenly apart."""
    unique = sorted(set(values))
    step = max(1, ceil(len(unique) / most))
    return [(value, str(int(value))) for value in unique[::step]]


def _figure(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e+")
    return f"{value:.4g}"
