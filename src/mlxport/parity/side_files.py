"""What else must be right in an output: the files as they were written, the tokenizer, where a text ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxport.errors import MlxportError, SourceError
from mlxport.source import hash_file
from mlxport.source.jsonfile import read_object
from mlxport.types import Checkpoint

__all__ = ["carried_problems"]

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def carried_problems(folder: Path, checkpoint: Checkpoint, written: Mapping[str, Any]) -> tuple[str, ...]:
    """Compare all but the model with the original and with the record.

    Args:
        folder: The output.
        checkpoint: The original.
        written: Shards as the record has them: name to ``{"sha256": …}``; empty where there is no record.

    Returns:
        A line for each thing that is wrong.
    """
    from mlxport.parity.tokenizer import check_tokenizer

    problems = [*_changed(folder, written), *_tokens(folder, checkpoint.config)]
    try:
        check_tokenizer(folder, checkpoint)
    except MlxportError as error:
        problems.append(error.message)
    return tuple(problems)


def _changed(folder: Path, written: Mapping[str, Any]) -> list[str]:
    """Shards that are not the files that were written: small changes of a quantized tensor pass for its error."""
    lines = []
    for name, entry in written.items():
        expected = entry.get("sha256") if isinstance(entry, Mapping) else None
        try:
            found = hash_file(folder / name)
        except SourceError as error:
            lines.append(error.message)
            continue
        if found != expected:
            lines.append(f"{folder / name} changed since it was written: its sha256 is {found}, recorded is {expected}")
    return lines


def _tokens(folder: Path, original: Mapping[str, Any]) -> list[str]:
    """Special ids of the config that differ: generation would end elsewhere, or not at all."""
    config = read_object(folder / "config.json", SourceError, unique=False)
    return [
        f"{folder / 'config.json'} says {name} {config.get(name)}, the original says {original[name]}"
        for name in _TOKENS
        if original.get(name) is not None and config.get(name) != original[name]
    ]
