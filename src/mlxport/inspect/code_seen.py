"""What code a checkpoint or a converted folder brings, said without running any of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlxport.errors import SourceError
from mlxport.progress import listed
from mlxport.source.jsonfile import read_object
from mlxport.source.written_code import PARTS, code_files, source_to_run
from mlxport.types import Checkpoint

__all__ = ["code_seen"]

_UNTRUSTED = "runs only with --trust-remote-code"
_MOST = 5
# Files beside config.json whose auto_map transformers follows.
_WITH_AUTO_MAP = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def code_seen(checkpoint: Checkpoint) -> Iterator[str]:
    """A line for each way in which the checkpoint would have code of its own run, and for code that lies there."""
    told = set()
    try:
        built = code_files(checkpoint.root, checkpoint.config)
    except SourceError as error:
        yield error.message
        built = {}
    for part, path in built.items():
        told.add(path.name)
        what = f"the part {part} of the model ({PARTS}" if part else "the model (model_file"
        yield f"{path.name} builds {what} in config.json): {_whose(path)}"
    files = {path.name: path for path in checkpoint.side_files}
    for name in ("config.json", *_WITH_AUTO_MAP):
        if named := _auto_map(checkpoint.config if name == "config.json" else _read(files.get(name))):
            yield f"auto_map in {name} names {listed(named, _MOST)}: {_UNTRUSTED}"
    if others := [name for name in files if name.endswith(".py") and name not in told]:
        yield f"{listed(others, _MOST)}: {_UNTRUSTED}"


def _whose(path: Path) -> str:
    if not path.exists():
        return "it is not there"
    try:
        source_to_run(path, trust_remote_code=False)
    except SourceError:
        return f"this installation did not write it, it {_UNTRUSTED}"
    return "this installation wrote it"


def _auto_map(config: Mapping[str, Any]) -> list[str]:
    """What an ``auto_map`` names; it is a map of names, of lists of them, or something else."""
    found = config.get("auto_map")
    values = list(found.values()) if isinstance(found, Mapping) else [found] if found else []
    return list(dict.fromkeys(str(name) for value in values for name in _names(value) if name))


def _names(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _read(path: Path | None) -> Mapping[str, Any]:
    with contextlib.suppress(SourceError):
        return read_object(path, SourceError, unique=False) if path is not None else {}
    return {}
