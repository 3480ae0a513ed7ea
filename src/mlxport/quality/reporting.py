"""``mlxport report``: measure a converted folder against its original, and write the page."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlxport.errors import UsageError
from mlxport.progress import make_progress

if TYPE_CHECKING:
    from mlxport.fit import Machine
    from mlxport.quality.quality_report import QualityReport

__all__ = ["quality_report"]


def quality_report(
    output: str | Path,
    against: str | Path | None = None,
    *,
    folder: str | Path | None = None,
    device: str | None = None,
    text: str | Path | None = None,
    tokens: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    quiet: bool = True,
) -> QualityReport:
    """Measure what a converted model lost, and write ``report.html`` and ``report.json``.

    Args:
        output: A folder that mlx-lm loads, or a hub id of one.
        against: The original: a folder or a hub id; by default what the output's record names, if it has not changed.
        folder: Where to write; by default into ``output``.
        device: A Mac to predict the speed for, such as ``"M2 8GB"``; by default this machine, where it is one.
        text: A file of text to measure on; by default the built-in text.
        tokens: Most tokens of the text; by default 4,096, and less for models that are slow here.
        revision: Branch, tag or commit of a hub repository that ``against`` names.
        trust_remote_code: Allow code of the checkpoint to run (a tokenizer's).
        quiet: Show no progress.

    Raises:
        UsageError: Not an original of this output, no such device, or a text that is none or too short.
        TokenizerError: Neither text nor samples can be given to a model without a tokenizer.
        MlxportError: What else is wrong with either folder; nothing was written.
    """
    from mlxport.quality.heldout_text import LEAST_TOKENS, read_text
    from mlxport.quality.quality_report import make_report, write_report

    if tokens is not None and tokens <= LEAST_TOKENS:
        raise UsageError(f"--tokens {tokens}: figures of so few say nothing", hint=f"give more than {LEAST_TOKENS}")
    machine = named_or_here(device)
    words = None if text is None else read_text(text)
    if folder is None and not os.path.isdir(os.path.expanduser(output)):
        raise UsageError(f"{output} is no folder to write a report into", hint="say where with --output FOLDER")
    with make_progress(0, f"measuring {Path(output).name}", quiet=quiet) as progress:
        report = make_report(
            output,
            against,
            source=None if against is None else str(against),
            machine=machine,
            text=words,
            text_name="" if text is None else Path(text).name,
            tokens=tokens,
            revision=revision,
            trust_remote_code=trust_remote_code,
            on_progress=progress.message,
        )
    page, data = write_report(report, Path(output if folder is None else folder).expanduser())
    return replace(report, page=page, data=data)


def named_or_here(device: str | None) -> Machine | None:
    """The machine of that name; without one, the Mac that this runs on, None where it is none."""
    from mlxport.fit import named_machine, this_machine

    if device is not None:
        return named_machine(device)
    try:
        return this_machine()
    except UsageError:
        return None
