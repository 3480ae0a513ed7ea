"""The markdown page that the architecture sweep writes."""

from __future__ import annotations

from collections import Counter
from typing import Any

HEAD = """# Architectures

Every architecture that both mlx-lm and transformers have, converted from a tiny random checkpoint as transformers saves
it, and compared with transformers in float32: logits of two rows of 24 tokens, once in one pass and once with a cache,
token by token after the first 14. A number is the larger of the two errors, relative to the largest logit.

    {command}

- **number**: parity (below {tolerance:g})
- **limited**: converted with a warning; the same only up to a length of text, or with a close variant of a function
- **refused**: mlx-lm would compute something else or cannot load it; `mlxport` says so instead
- **failed**, **wrong**: not handled yet
- **not built**: transformers cannot build or run this tiny variant; **not run**: mlx-lm cannot run it on this machine
- empty: the architecture has no such variant

{versions}

{summary}

"""
COLUMNS = (
    "base", "wide window", "tied", "untied", "rope linear", "rope llama3", "rope yarn", "rope dynamic", "rope longrope",
    "old-style config",
)  # fmt: skip


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


def table(results: list[dict[str, Any]], command: str, tolerance: float, versions: str) -> str:
    """Return the page for `results`."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results:
        rows.setdefault(result["architecture"], {})[result["variant"]] = result
    counts = Counter(overall(cells) for cells in rows.values())
    summary = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    lines = [
        HEAD.format(command=command, tolerance=tolerance, versions=versions, summary=f"{len(rows)} types: {summary}.")
    ]
    lines.append("| model_type | " + " | ".join(COLUMNS) + " |")
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    lines += [f"| {name} | " + " | ".join(_cell(cells.get(c)) for c in COLUMNS) + " |" for name, cells in rows.items()]
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
