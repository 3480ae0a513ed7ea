"""docs/ops.md from what the sweeps of ops and modules have found.

python benchmarks/sweep_ops_report.py .sweep-ops.json .sweep-modules.json docs/ops.md
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "graph"))

Row = tuple[str, str, str, str]

HEAD = """# Ops and modules

Every entry of torch's own op database (OpInfo) and module database (ModuleInfo), exported by `torch.export`, lowered
to MLX, run on MLX's CPU backend and compared with torch.

    make sweep-ops

- The first {samples} samples of an entry count, forward. An entry passes if all of them do: same shapes, same dtypes,
  integers and bools equal, floats within {relative:g} of each value plus {absolute:g} of the largest one.
- Where torch promises no order (eigenvalues, indices of tied values), results are compared up to it. Samples that drop
  elements at random are skipped.
- Modules go through `mlxport.port` in eval mode with random weights and statistics, which also compares them at other
  input sizes.
- Not counted: what torch itself does not export, and ops that draw random numbers, leave memory uninitialised, or are
  about sparse layouts and CUDA's jiterator.
- Every op of Core ATen has a lowering or comes apart into ops that have one, but for those that
  `tests/graph/ops/test_table.py` names (gradients, memory).

{versions}

{summary}

"""


def main() -> None:
    """Write the page."""
    ops_file, modules_file, page = map(Path, sys.argv[1:])
    ops: list[Row] = [tuple(row) for row in json.loads(ops_file.read_text())]
    modules: list[Row] = [tuple(row) for row in json.loads(modules_file.read_text())]
    from conformance import LEFT_OUT, SAMPLES, TOLERANCES
    from torch import float32

    relative, absolute = TOLERANCES[float32]
    groups = [(f"ops, {dtype}", [row for row in ops if row[1] == dtype]) for dtype in dict.fromkeys(r[1] for r in ops)]
    groups.append(("modules, float32", modules))
    versions = f"mlx {version('mlx')}, torch {version('torch')}."
    head = HEAD.format(
        samples=SAMPLES, relative=relative, absolute=absolute, versions=versions, summary=_summary(groups)
    )
    parts = [head, _failures(groups), _names("Torch does not export", _unexported(groups)), _passing(groups)]
    parts.append(_names("Left out", {"": sorted(LEFT_OUT)}))
    page.write_text("\n".join(parts))


def _summary(groups: list[tuple[str, list[Row]]]) -> str:
    lines = ["| | counted | pass | | not exported by torch |", "|---|---|---|---|---|"]
    for title, rows in groups:
        counted = [row for row in rows if row[2] != "unexported"]
        passed = sum(row[2] == "pass" for row in counted)
        share = f"{100 * passed / len(counted):.1f}%" if counted else ""
        lines.append(f"| {title} | {len(counted)} | {passed} | {share} | {len(rows) - len(counted)} |")
    return "\n".join(lines)


def _failures(groups: list[tuple[str, list[Row]]]) -> str:
    lines = ["## What does not pass", "", "| | entry | what | reason |", "|---|---|---|---|"]
    for title, rows in groups:
        for name, _, status, reason in rows:
            if status not in ("pass", "unexported"):
                lines.append(f"| {title} | `{name}` | {status} | {_cell(reason)} |")
    return "\n".join([*lines, ""])


def _cell(reason: str) -> str:
    text = reason.replace("|", "\\|").replace("\n", " ")
    return text if len(text) <= 300 else text[:300] + " …"


def _unexported(groups: list[tuple[str, list[Row]]]) -> dict[str, list[str]]:
    return {title: [row[0] for row in rows if row[2] == "unexported"] for title, rows in groups}


def _passing(groups: list[tuple[str, list[Row]]]) -> str:
    return _names("What passes", {title: [row[0] for row in rows if row[2] == "pass"] for title, rows in groups})


def _names(title: str, found: dict[str, list[str]]) -> str:
    lines = [f"## {title}", ""]
    for group, names in found.items():
        if names:
            lines += [(f"{group}: " if group else "") + ", ".join(f"`{name}`" for name in sorted(names)), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
