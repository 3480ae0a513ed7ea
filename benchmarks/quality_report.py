"""The results of ``quality.py`` as tables and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# KL to the original relative to round-to-nearest's in groups of 64, at equal bits per weight.
AIMS = {
    "search": {4: 0.88, 3: 0.75, 2: 0.40},
    "allocated": {4: 0.75, 3: 0.60, 2: 0.35},
    "calibrated": {4: 0.50, 3: 0.40, 2: 0.25},
}
COLOURS = {"mlx-lm": "#8a8f98", "search": "#2b7bba", "allocated": "#1f9d76", "calibrated": "#d1622b"}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one section a model, methods by the bits that they are compared at."""
    parts = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = sorted((row for row in rows if row["model"] == model), key=lambda row: (row["bits"], row["tool"]))
        parts.append(f"## {model}\n\n{_embedding(own) if 'cosine' in own[0] else _language(own)}\n")
    return "\n".join(parts)


def _language(rows: list[dict[str, Any]]) -> str:
    head = "| bits | method | of | bits per weight | KL | of rtn | aim | KL 99% | top-1 | perplexity | minutes | MB |"
    lines = [head, "|" + "---|" * 12]
    plain = {row["bits"]: row for row in rows if row["method"] == f"rtn {row['bits']}"}
    for row in rows:
        cells = [str(row["bits"]), row["method"].removesuffix(f" {row['bits']}"), row["tool"]]
        if "failure" in row:
            lines.append(f"| {' | '.join(cells)} | {row['failure'].replace('|', '/')} |" + " |" * 8)
            continue
        beside = plain.get(row["bits"])
        of_rtn = f"{row['kl'] / beside['kl']:.2f}" if beside and _equal(row, beside) else ""
        aim = AIMS.get(row["kind"], {}).get(row["bits"])
        cells += [f"{row['bits_per_weight']:.3f}", f"{row['kl']:.4f}", of_rtn, f"{aim:.2f}" if aim and of_rtn else ""]
        cells += [f"{row['kl_99']:.3f}", f"{row['top1']:.3f}", f"{row['perplexity']:.2f}"]
        cells += [f"{row['seconds'] / 60:.2f}", f"{row['peak_bytes'] / 1e6:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _equal(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the two are of one size: what is compared with round-to-nearest is at most 0.02 bits larger."""
    return row["bits_per_weight"] <= other["bits_per_weight"] + 0.02


def _embedding(rows: list[dict[str, Any]]) -> str:
    lines = ["| bits | method | bits per weight | mean cosine to the original |", "|---|---|---|---|"]
    for row in rows:
        name = row["method"].removesuffix(f" {row['bits']}")
        lines.append(f"| {row['bits']} | {name} | {row['bits_per_weight']:.3f} | {row['cosine']:.5f} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bits per weight against KL, one panel a model; the line joins what nothing else beats at its size."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "mlxport", "svg.fonttype": "none", "font.size": 10}
    from matplotlib import pyplot

    shown = [row for row in rows if "kl" in row and row["bits_per_weight"] < 16 and row["kl"] > 0]
    models = list(dict.fromkeys(row["model"] for row in shown))
    figure, panels = pyplot.subplots(1, len(models), figsize=(4.6 * len(models), 4.2), squeeze=False)
    for panel, model in zip(panels[0], models, strict=True):
        own = [row for row in shown if row["model"] == model]
        for kind, colour in COLOURS.items():
            points = [row for row in own if (row["kind"] or row["tool"]) == kind]
            where = [row["bits_per_weight"] for row in points], [row["kl"] for row in points]
            panel.scatter(*where, s=26, color=colour, label=kind, zorder=3)
        best = _front(own)
        panel.plot(
            [r["bits_per_weight"] for r in best],
            [r["kl"] for r in best],
            color="#444",
            lw=0.8,
            drawstyle="steps-post",
            zorder=2,
        )
        panel.set(yscale="log", title=model, xlabel="bits per weight", ylabel="KL to the original")
        panel.grid(alpha=0.25, which="both", lw=0.5)
    panels[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, facecolor="white")


def _front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What nothing smaller or equal in size beats."""
    best: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["bits_per_weight"], row["kl"])):
        if not best or row["kl"] < best[-1]["kl"]:
            best.append(row)
    return best
