"""Files that appear whole or not at all: written beside their place, put on disk, and then renamed into it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mlxport.errors import disk_full

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = ["beside", "replace_arrays", "replace_json", "replace_text", "replacing", "sync"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def beside(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """A name beside ``path``; the file that is written there becomes ``path`` at the end, once it is on disk.

    Whatever goes wrong before that, a kill included, leaves what ``path`` was; what was unfinished is removed.

    Args:
        path: The file.
        suffix: Appended to its name meanwhile.

    Raises:
        DiskError: No space is left.
    """
    temporary = path.with_name(path.name + suffix)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise disk_full(path) from error
        raise
    sync(path.parent)  # the rename itself


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file, to be read and written, that becomes ``path`` at the end; see :func:`beside`."""
    with beside(path) as temporary, open(temporary, "w+b") as file:
        yield file


def replace_text(path: Path, text: str) -> None:
    """Make ``text`` the content of ``path``, in UTF-8; see :func:`beside`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def replace_json(path: Path, value: Any) -> None:
    """Make a value, as JSON, the content of ``path``; see :func:`beside`."""
    replace_text(path, json.dumps(value))


def replace_arrays(path: Path, arrays: Mapping[str, mx.array], metadata: Mapping[str, str] | None = None) -> None:
    """Make ``path`` a safetensors file of arrays; see :func:`beside`.

    Args:
        path: The file.
        arrays: Name to array; what is lazy is computed.
        metadata: Of the file's header.
    """
    import mlx.core as mx

    mx.eval(list(arrays.values()))  # so that what fails below is the writing
    with beside(path, ".tmp.safetensors") as temporary:  # MLX appends this ending where a name lacks it
        try:
            mx.save_safetensors(str(temporary), dict(arrays), metadata=dict(metadata or {}))
        except RuntimeError as error:  # MLX's only word for a write that failed
            raise disk_full(path) from error


def sync(path: Path) -> None:
    """Make a file, or the renames in a folder, durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
