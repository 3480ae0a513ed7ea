"""The markdown page that the architecture sweep writes."""

from __future__ import annotations

from collections import Counter
from typing import Any

HEAD = """# Architectures

Every architecture that both mlx-lm and transformers have, converted from a tiny random checkpoint as transformers saves
it, and compared with transformers in float32: logits of two rows of 24 tokens, once in one pass and once with a cache,
token by token after the first 14. A number is the larger of the two errors, relative to the largest logit.
The base variant is also verified by the conversion itself.

    {command}

- **number**: parity (below {tolerance:g})
- **limited**: converted with a warning; the same only up to a length of text, or with a close variant of a function
- **refused**: mlx-lm would compute something else or cannot load it; `mlxport` says so instead
- **failed**, **wrong**: not handled yet
- **not built**: transformers cannot build or run this tiny variant; **not run**: mlx-lm cannot run it on this machine
- empty: the architecture has no such variant
- **mlx_lm: base** and **mlx_lm: old-style config**: the same folder converted by `mlx_lm convert` alone; **wrong** is a
  folder that loads and computes something else, **failed** one that cannot be converted or loaded

{versions}

{summary}

"""
COLUMNS = (
    "base", "wide window", "tied", "untied", "rope linear", "rope llama3", "rope yarn", "rope dynamic", "rope longrope",
    "old-style config",
)  # fmt: skip


INCUMBENT = ("base", "old-style config")


def comparison(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """Return how both converters fare on the base variant of each architecture, and on all variants."""
    lines = ["| | parity | limited, said so | refused, with the reason | does not convert or load | silently wrong |"]
    lines += ["|---|---|---|---|---|---|"]
    for title, only in (
        ("as transformers 5 saves them", "base"),
        ("old-style config", "old-style config"),
        ("all variants", ""),
    ):
        for name, results in (("mlxport", ours), ("mlx_lm", theirs)):
            counts = Counter(r["status"] for r in results if not only or r["variant"] == only)
            row = " | ".join(str(counts[s]) for s in ("parity", "limited", "refused", "failed", "wrong"))
            lines.append(f"| {title}: `{name} convert` | {row} |")
    return "\n".join(lines)


def overall(cells: dict[str, dict[str, Any]]) -> str:
    """Return one word for all variants of an architecture."""
    states = [cell["status"] for cell in cells.values() if not cell["status"].startswith("not ")]
    if not states:
        return next(iter(cells.values()))["status"]
    for status in ("wrong", "failed"):
        if status in states:
            return status
    if all(status == "refused" for status in states):
        return "refused"
    return "limited" if cells.get("base", {}).get("status") == "limited" else "parity"


def table(
    results: list[dict[str, Any]], theirs: list[dict[str, Any]], command: str, tolerance: float, versions: str
) -> str:
    """Return the page for `results`, beside those of mlx_lm's own conversion."""
    other = {(result["architecture"], result["variant"]): result for result in theirs}
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results:
        rows.setdefault(result["architecture"], {})[result["variant"]] = result
    counts = Counter(overall(cells) for cells in rows.values())
    summary = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    lines = [
        HEAD.format(command=command, tolerance=tolerance, versions=versions, summary=f"{len(rows)} types: {summary}.")
    ]
    if theirs:
        lines += [comparison(results, theirs), ""]
    columns = (*COLUMNS, *(f"mlx_lm: {variant}" for variant in INCUMBENT if theirs))
    lines.append("| model_type | " + " | ".join(columns) + " |")
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, cells in rows.items():
        shown = [cells.get(column) for column in COLUMNS]
        shown += [other.get((name, variant)) for variant in INCUMBENT if theirs]
        lines.append(f"| {name} | " + " | ".join(_cell(cell) for cell in shown) + " |")
    lines += ["", "## Why", ""]
    for name, cells in rows.items():
        reasons: dict[str, list[str]] = {}
        for variant, cell in cells.items():
            if cell.get("reason"):
                reasons.setdefault(cell["reason"], []).append(variant)
        every = len(cells)
        lines += [
            f"- **{name}**{'' if len(variants) == every else ' (' + ', '.join(variants) + ')'}: {reason}"
            for reason, variants in reasons.items()
        ]
    return "\n".join(lines) + "\n"


def _cell(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    if result["status"] != "parity":
        return str(result["status"])
    return f"{max(result['error'], result['cached_error']):.0e}"
