"""Open a GGUF file, or the parts of one, as a checkpoint of transformers: config, tokenizer, tensors by rows."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxport.errors import SourceError, WeightsError
from mlxport.source.declared_counts import check_counts
from mlxport.source.file_state import state_of
from mlxport.source.gguf.architectures import architecture_of, named_tensors
from mlxport.source.gguf.gguf_config import config_of
from mlxport.source.gguf.gguf_tokenizer import write_tokenizer
from mlxport.source.gguf.header import ORIGINAL, GgufHeader, read_header
from mlxport.types import Checkpoint

__all__ = ["one_file", "open_gguf"]

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def one_file(folder: Path, names: list[str]) -> Path:
    """The one GGUF file of a folder, of a file in parts the first.

    Raises:
        WeightsError: There are several.
    """
    whole = sorted(name for name in names if not _PART.fullmatch(name))
    parts = {match["stem"]: name for name in sorted(names, reverse=True) if (match := _PART.fullmatch(name))}
    found = [*whole, *parts.values()]
    if len(found) > 1:
        raise WeightsError(
            f"{folder} holds {len(found)} GGUF models: {', '.join(found[:5])}", hint=f"give one: {folder / found[0]}"
        )
    return folder / found[0]


def open_gguf(path: Path, check_config: Callable[[Mapping[str, Any]], None] | None = None) -> Checkpoint:
    """The checkpoint in a file; its numbers stay there.

    Args:
        path: The file; of one in parts any of them.
        check_config: Called with the config before the tokenizer is made; what it raises goes through.

    Raises:
        WeightsError: It is truncated, malformed, or a part is missing.
        UnsupportedError: An architecture, a type of ggml, a version or a byte order that is not read; it is named.
        TokenizerError: Its tokenizer cannot be made.
    """
    files = _parts(path)
    states = {file: state for file in files if (state := state_of(file)) is not None}
    header = _joined([read_header(file) for file in files])
    architecture = architecture_of(header)
    config = config_of(header, architecture)
    heads = (config["num_attention_heads"], config["num_key_value_heads"])
    if any(type(count) is not int or count < 1 for count in heads):
        raise SourceError(f"{path}: numbers of heads are {heads}, expected one for all layers", hint=ORIGINAL)
    tensors = named_tensors(header, architecture, heads)
    check_counts(config, {name: ref.shape for name, ref in tensors.items()}, path)
    if check_config is not None:
        check_config(config)
    made = _Folder()
    (made.path / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tokenizer = write_tokenizer(header, made.path)
    return Checkpoint(
        root=made.path,
        config=config,
        tensors=tensors,
        weight_files=files,
        side_files=tuple(tokenizer),
        problems=_problems(header),
        states=states,
        file=files[0],
        keeps=made,
    )


class _Folder:
    """A folder among the temporary files that goes when this does."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="mlxport-gguf-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _parts(path: Path) -> tuple[Path, ...]:
    """All parts of a file, in order."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    names = [f"{match['stem']}-{number:05d}-of-{match['count']}.gguf" for number in range(1, int(match["count"]) + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise WeightsError(f"{path.parent}: the part {missing[0]} is missing{more}", hint="download the missing files")
    return tuple(path.parent / name for name in names)


def _joined(headers: list[GgufHeader]) -> GgufHeader:
    """The header of the first part with the tensors of all."""
    first = headers[0]
    declared = first.metadata.get("split.count", len(headers))
    if len(headers) == 1 and type(declared) is int and declared > 1:
        raise WeightsError(
            f"{first.path} is one of {declared} parts, and its name does not say which",
            hint="give it its name again: NAME-00001-of-0000N.gguf, beside the other parts",
        )
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise WeightsError(f"{first.path}: its parts hold a tensor twice", hint="get all parts from one place")
    total = first.metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise WeightsError(
            f"{first.path} says that its parts hold {total} tensors, they hold {len(tensors)}",
            hint="get all parts from one place",
        )
    return replace(first, tensors=tensors)


def _problems(header: GgufHeader) -> tuple[str, ...]:
    kinds: dict[str, int] = {}
    for tensor in header.tensors:
        kinds[tensor.kind.name] = kinds.get(tensor.kind.name, 0) + 1
    listed = ", ".join(f"{count} of {name}" for name, count in sorted(kinds.items(), key=lambda item: -item[1]))
    return (f"GGUF of {header.architecture}: {listed}; config.json and the tokenizer are made of its metadata",)
