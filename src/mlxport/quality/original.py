"""The original of an output: the one that is named, or the one on record while it is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlxport.errors import SourceError, UsageError
from mlxport.layouts.table import refuse_unknown_code
from mlxport.output.record import read_record, weight_name
from mlxport.source import hash_file, open_checkpoint
from mlxport.types import Checkpoint

__all__ = ["find_original"]

_NAME_IT = "name the original: mlxport report DST --against SRC"


def find_original(
    folder: Path,
    given: str | Path | Checkpoint | None,
    *,
    revision: str | None = None,
    same: bool = False,
    trust_remote_code: bool = False,
    on_progress: Callable[[str], None] = lambda _: None,
) -> tuple[Checkpoint, tuple[str, ...]]:
    """Open the original of an output, and compare its files with those on record.

    Args:
        folder: The output.
        given: A folder, a hub id, an opened checkpoint; None is the one that the record names.
        revision: Branch, tag or commit of a hub repository that is given.
        same: The original is known to be what was converted: nothing is hashed.
        trust_remote_code: Allow code of the checkpoint to run.
        on_progress: Called with a line for each step.

    Returns:
        The checkpoint, and a remark where its files are others than those that were converted, or nothing tells.

    Raises:
        UsageError: None is given, and the record names none, or it is gone or has changed.
        SourceError: What is given cannot be opened.
    """
    recorded = given is None
    if given is None:
        given, revision = _recorded(folder)
    checkpoint = given if isinstance(given, Checkpoint) else _open(given, revision, trust_remote_code, recorded)
    if same:
        return checkpoint, ()
    on_progress("hashing the original")
    return checkpoint, _changed(checkpoint, folder, recorded)


def _recorded(folder: Path) -> tuple[str, str | None]:
    """The source that an output's record names, and its revision where it is one of the hub."""
    source = read_record(folder).get("source")
    known = source if isinstance(source, dict) else {}
    name, revision = known.get("repo") or known.get("name"), known.get("revision")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{folder} does not say what it was converted from", hint=_NAME_IT)
    return name, revision if known.get("repo") and isinstance(revision, str) else None


def _open(given: str | Path, revision: str | None, trust: bool, recorded: bool) -> Checkpoint:
    def check(config: Mapping[str, Any]) -> None:
        refuse_unknown_code(config, str(given), trust)

    try:
        return open_checkpoint(given, revision=revision, trust_remote_code=trust, check_config=check)
    except SourceError as error:
        if not recorded:
            raise
        message = f"the original that was recorded cannot be opened: {error.message}"
        raise UsageError(message, hint=_NAME_IT) from error


def _changed(checkpoint: Checkpoint, folder: Path, recorded: bool) -> tuple[str, ...]:
    """A remark where the original's files are not those that were converted; refused where nobody named them."""
    source = read_record(folder).get("source")
    known = source.get("files") if isinstance(source, dict) else None
    if not isinstance(known, dict) or not known:
        return ("the output has no record of what it was converted from: whether this is it was not checked",)
    differing = []
    for path in checkpoint.weight_files:
        entry = known.get(weight_name(checkpoint, path))
        expected = entry if isinstance(entry, dict) else {}
        if path.stat().st_size != expected.get("size") or hash_file(path) != expected.get("sha256"):
            differing.append(path.name)
    if not differing and len(known) == len(checkpoint.weight_files):
        return ()
    what = ", ".join(differing[:3]) or f"{len(checkpoint.weight_files)} files instead of {len(known)}"
    message = f"{checkpoint.location} does not hold the weights that were converted ({what})"
    if recorded:
        raise UsageError(message, hint=_NAME_IT)
    return (f"{message}: differences may be those of another version of the original",)
