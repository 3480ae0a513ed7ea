"""A quality report as files: one page and one JSON object."""

from __future__ import annotations

import json
from pathlib import Path

from mlxport.errors import DiskError
from mlxport.output.atomic_files import replace_text
from mlxport.quality.page import render
from mlxport.quality.quality_report import QualityReport

__all__ = ["PAGE", "RECORD", "write_report"]

PAGE, RECORD = "report.html", "report.json"


def write_report(report: QualityReport, folder: Path) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.json`` into a folder, each whole or not at all.

    Raises:
        DiskError: They cannot be written.
    """
    page = render(report)
    data = json.dumps(report.to_json(), indent=2, ensure_ascii=True, allow_nan=False, default=str)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in ((RECORD, data + "\n"), (PAGE, page)):
            replace_text(folder / name, content)
    except OSError as error:
        hint = "choose another folder with --output"
        raise DiskError(f"cannot write the report to {folder}: {error.strerror or error}", hint=hint) from error
    return folder / PAGE, folder / RECORD
