"""What the system must give before work begins: a folder for temporary files, open files, names that are text.

Each is refused here in one line; later it would be an error of MLX, mlx-lm or a tokenizer that names none of them.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlxport.errors import DestinationError, DiskError, UsageError, too_few_files

__all__ = ["check_surroundings", "nothing_left_by_torch"]

# MLX compiles on the CPU with the system's compiler, which writes so much at most for one function.
_ROOM = 2 << 20
_VARIABLES = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")  # in the order of C++'s temp_directory_path, which MLX asks
_FILES = (2048, 4096)  # mlx_lm/utils.py sets these limits when it is imported


def check_surroundings(*paths: str | Path) -> None:
    """Refuse what would fail later.

    Args:
        paths: Folders that will be read or written, as the user gave them.

    Raises:
        UsageError: A path is no text in UTF-8, or TMPDIR names no folder.
        DiskError: The folder for temporary files cannot be written, or is full.
        MlxportError: Too few open files are allowed.
    """
    for path in paths:
        _check_name(path)
    _check_temporary()
    _check_open_files()


@contextlib.contextmanager
def nothing_left_by_torch() -> Iterator[None]:
    """Take away the folder for compiled code that torch makes among the temporary files when it is imported.

    Only where it is new and empty: what another program put there stays.
    """
    before = _of_torch()
    try:
        yield
    finally:
        for folder in _of_torch() - before:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _of_torch() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("torchinductor_*"))


def _check_name(path: str | Path) -> None:
    whole = os.path.abspath(os.path.expanduser(path))
    try:
        whole.encode("utf-8")
    except UnicodeEncodeError as error:
        encoding = sys.getfilesystemencoding()
        plain = encoding.lower().replace("-", "") == "utf8"
        raise DestinationError(
            f"{ascii(whole)} is not a name in UTF-8, which tokenizers and MLX need",
            hint="rename it" if plain else f"unset PYTHONUTF8: it makes Python read names in {encoding}",
        ) from error


def _check_temporary() -> None:
    variable = next((name for name in _VARIABLES if os.environ.get(name)), "")
    folder = os.environ.get(variable) or tempfile.gettempdir()
    named = f"{variable} names {folder}" if variable else f"temporary files go to {folder}"
    hint = "set TMPDIR to a folder that you may write to, with some MB free"
    if not os.path.isdir(folder):
        raise UsageError(f"{named}, which is not a folder", hint=hint)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            file.write(bytes(_ROOM if limit == resource.RLIM_INFINITY else min(_ROOM, limit)))
    except OSError as error:
        raise DiskError(f"{named}, where nothing can be written: {error.strerror}", hint=hint) from error
    if sys.platform == "linux" and os.statvfs(folder).f_flag & os.ST_NOEXEC:  # what MLX compiles there is loaded
        hint = "set TMPDIR to a folder on a disk that is mounted without noexec"
        raise UsageError(f"{named}, where nothing may be executed (noexec), as MLX has to", hint=hint)


def _check_open_files() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= _FILES[1]:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, _FILES)  # who may raise it has what mlx-lm would do a little later
    except (ValueError, OSError) as error:
        raise too_few_files() from error
