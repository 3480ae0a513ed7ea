"""Which code of a model's folder may run: what the user trusts, and what this installation wrote itself.

A folder's own record proves nothing, for whoever wrote the folder wrote the record. So the hash of all source that
``port`` and ``convert`` write is kept outside of it, in the user's cache directory: one empty file for each, whose name
is the hash. A folder may be moved, copied and renamed; a changed file is another file.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from mlxport.errors import ConfigError, SourceError, UnsafeError
from mlxport.source.safe_files import inside, opened, read_exactly

__all__ = [
    "CACHE_VARIABLE",
    "PARTS",
    "code_files",
    "model_file",
    "not_remembered",
    "refuse_foreign_source",
    "refuse_model_file",
    "remember",
    "source_to_run",
    "store",
    "written_here",
]

# Moves the cache directory, which is otherwise where others keep theirs: $XDG_CACHE_HOME/mlxport or ~/.cache/mlxport.
CACHE_VARIABLE = "MLXPORT_CACHE"
PARTS = "port_parts"
"""Where config.json keeps the fields of each part of a model, by the part's name; its source is NAME.py."""
TRUST = "read that file, then add --trust-remote-code (in Python: trust_remote_code=True)"
_MOST_BYTES = 100_000_000
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
# What this process wrote may run in it, whether or not the cache directory can be written.
_just_written: set[str] = set()


def store() -> Path | None:
    """The folder of hashes; None where the environment gives no place that does not depend on the current folder."""
    for given, below in (
        (os.environ.get(CACHE_VARIABLE), ""),
        (os.environ.get("XDG_CACHE_HOME"), "mlxport"),
        (os.path.expanduser("~"), ".cache/mlxport"),
    ):
        # The XDG specification has relative paths ignored. Here one would let a downloaded folder bring its own store.
        if given and os.path.isabs(given):
            return Path(given, below, "written-code")
    return None


def remember(path: Path) -> bool:
    """Note that this installation wrote a source file; False where that cannot be kept beyond this process."""
    digest = sha256(_read(path)).hexdigest()
    _just_written.add(digest)
    folder = store()
    if folder is None:
        return False
    try:
        for part in (folder.parent.parent, folder.parent, folder):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(folder):
            return False
        with contextlib.suppress(FileExistsError):
            # Made with its name in one step, and only made: what lies there already, a pipe even, is never opened.
            os.close(os.open(folder / digest, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError:
        return False
    return _is_noted(folder, digest)


def not_remembered(name: str) -> str:
    """What to say of a source file that ``remember`` could not note, and what the user can do about it."""
    folder = store()
    where = "no folder to keep that in" if folder is None else f"{folder} cannot be written, or others can change it"
    return (
        f"{name} could not be noted as written by this installation ({where}): in another process loading it takes "
        f"--trust-remote-code (in Python: trust_remote_code=True). To have it noted, set {CACHE_VARIABLE} to the full "
        "path of a folder of your own and run the same command again, with --overwrite"
    )


def written_here(source: bytes) -> bool:
    """Whether this installation wrote exactly this source."""
    digest = sha256(source).hexdigest()
    if digest in _just_written:
        return True
    folder = store()
    return folder is not None and _is_noted(folder, digest)


def source_to_run(path: Path, trust_remote_code: bool) -> bytes:
    """The content of a source file that may run; what is given back is what was checked, so that is what must run.

    Raises:
        UnsafeError: This installation did not write it, and it is not trusted.
        SourceError: It cannot be read.
    """
    source = _read(path)
    if not trust_remote_code and not written_here(source):
        raise _refused(path)
    return source


def model_file(folder: Path, config: Mapping[str, Any]) -> Path | None:
    """The file of code that a folder's config has its model built by, None for none.

    Raises:
        ConfigError: What the config gives is not a name.
        UnsafeError: It lies outside of the folder.
    """
    name = config.get("model_file")
    if name is None:
        return None
    if not isinstance(name, str):
        raise ConfigError(
            f"{folder}/config.json: model_file is not the name of a file but {str(name)[:80]!r}",
            hint="get config.json again from where the weights are from",
        )
    return inside(folder, name, named_by=f"{folder}/config.json")


def code_files(folder: Path, config: Mapping[str, Any]) -> dict[str, Path]:
    """The files of code that a folder's config has its model, or parts of it, built by: by name of the part, if any.

    Raises:
        ConfigError: What the config gives is not a name.
        UnsafeError: One lies outside of the folder.
    """
    path = model_file(folder, config)
    found = {} if path is None else {"": path}
    parts = config.get(PARTS)
    if parts is None:
        return found
    if not isinstance(parts, Mapping) or not all(str(name).isidentifier() for name in parts):
        raise ConfigError(
            f"{folder}/config.json: {PARTS} does not name parts of a model but says {str(parts)[:80]!r}",
            hint="get config.json again from where the weights are from",
        )
    return found | {str(name): inside(folder, f"{name}.py", named_by=f"{folder}/config.json") for name in parts}


def refuse_foreign_source(folder: Path, config: Mapping[str, Any], trust_remote_code: bool) -> bool:
    """Refuse a model whose source this installation did not write unless it is trusted; whether it is built by any.

    Raises:
        UnsafeError: Somebody else wrote it, and it is not trusted.
    """
    paths = code_files(folder, config).values()
    for path in paths:
        if os.path.lexists(path):
            source_to_run(path, trust_remote_code)
    return bool(paths)


def refuse_model_file(folder: Path, config: Mapping[str, Any], trust_remote_code: bool) -> None:
    """Refuse a model whose code somebody else runs (mlx-lm imports it) unless it is trusted.

    What this installation wrote is refused as well: an import may take its byte code from ``__pycache__``.

    Raises:
        UnsafeError: The config names such code, and it is not trusted.
    """
    path = model_file(folder, config)
    if path is not None and not trust_remote_code:
        raise _refused(path)


def _refused(path: Path) -> UnsafeError:
    message = f"{path} is code that this installation of mlxport did not write, and it has not been run"
    return UnsafeError(message, hint=TRUST)


def _read(path: Path) -> bytes:
    with opened(path, SourceError) as (fd, size):
        if size > _MOST_BYTES:
            raise SourceError(f"{path} has {size} bytes; at most {_MOST_BYTES} are expected of source")
        return read_exactly(fd, size, 0, path)


def _is_noted(folder: Path, digest: str) -> bool:
    return _is_ours(folder) and _is_own(folder / digest, stat.S_ISREG)


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can have put a hash into the folder."""
    return _is_own(folder, stat.S_ISDIR)


def _is_own(path: Path, kind: Any) -> bool:
    with contextlib.suppress(OSError, ValueError):
        found = os.lstat(path)
        return bool(kind(found.st_mode)) and found.st_uid == os.geteuid() and not found.st_mode & _WRITABLE_BY_OTHERS
    return False
