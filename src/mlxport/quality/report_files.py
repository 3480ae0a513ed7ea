"""A quality report as files: one page and one JSON object."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from mlxport.errors import DiskError, disk_full
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
            _replace(folder / name, content.encode("utf-8"))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(folder) from error
        hint = "choose another folder with --output"
        raise DiskError(f"cannot write the report to {folder}: {error.strerror or error}", hint=hint) from error
    return folder / PAGE, folder / RECORD


def _replace(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
