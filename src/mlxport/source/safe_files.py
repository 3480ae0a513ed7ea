"""Opening files that nobody vouches for: no path leaves the folder, nothing but regular files is read."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mlxport.errors import SourceError, UnsafeError, WeightsError

LFS_MAGIC = b"version https://git-lfs"
_NO_DATA = (".py", ".md")
_HANDED = re.compile(r"/dev/(fd/\d+|stdin)|/proc/(self|\d+)/fd/\d+")


def inside(root: Path, name: str, *, named_by: str = "") -> Path:
    """The path of ``name`` in ``root``, once it is sure that the real file lies there too.

    A symlink may point anywhere inside the folder. In a Hugging Face cache
    (``models--*/snapshots/<commit>``) it may also point into the repository's own ``blobs`` folder, which is where that
    cache keeps every file. Real paths are compared, so neither a linked folder on the way nor a ``blobs`` that is
    itself a link gets around this.

    Raises:
        UnsafeError: ``name`` is absolute, climbs out of the folder, or leaves it through a symlink.
    """
    where = f"{named_by}: " if named_by else ""
    parts = name.split("/")
    if (
        not name
        or not name.isprintable()
        or "\\" in name
        or name.startswith("/")
        or ":" in parts[0]
        or {"", ".", ".."} & {*parts}
    ):
        raise UnsafeError(
            f"{where}the file name {name!r} is not a plain path inside {root}",
            hint="this checkpoint is broken or hostile; get it again from its publisher",
        )
    path = root / name
    try:
        real_root, real = Path(os.path.realpath(root)), Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        raise UnsafeError(f"{where}{path} cannot be resolved: {error}") from error
    if real.is_relative_to(real_root):
        return path
    cache = real_root.parent.parent
    in_cache = real_root.parent.name == "snapshots" and cache.name.startswith("models--")
    if in_cache and real.is_relative_to(cache / "blobs"):
        return path
    raise UnsafeError(
        f"{where}{path} is a symlink that leaves the folder (to {real})",
        hint="copy the file itself into the folder if you trust it",
    )


@contextmanager
def opened(path: Path, error: type[SourceError] = WeightsError) -> Iterator[tuple[int, int]]:
    """Open a regular file for reading and hand over its descriptor and size; pipes and devices never block us.

    Raises:
        SourceError: As the class given by ``error``: missing, not a regular file, or not readable.
    """
    fd = open_regular(path, error)
    try:
        yield fd, os.fstat(fd).st_size
    finally:
        os.close(fd)


def open_regular(path: Path, error: type[SourceError] = WeightsError) -> int:
    """The descriptor of a regular file; raises as :func:`opened` does."""
    try:
        # Looked at before it is opened: opening some devices has effects of its own.
        regular = stat.S_ISREG(os.stat(path).st_mode)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK) if regular else -1
    except (OSError, ValueError) as cause:
        reason = getattr(cause, "strerror", None) or str(cause)
        raise error(f"{path} cannot be read: {reason}", hint="check that the file exists and is readable") from cause
    if fd >= 0 and not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        fd = -1
    if fd < 0:
        raise error(f"{path} is not a regular file", hint="put the file itself in its place")
    return fd


def refuse_special_files(folder: Path) -> None:
    """Refuse a folder with a pipe, device or socket where a file is expected: libraries would wait for it, or fill up.

    What they open is theirs to decide, so all that may hold data counts, one level below too; code and cards do not.

    Raises:
        SourceError: Names the first of them.
    """
    for parent in (folder, *_subfolders(folder)):
        for name in _names(parent):
            path = parent / name
            if not (name.endswith(_NO_DATA) or os.path.isfile(path) or os.path.isdir(path)) and os.path.exists(path):
                raise SourceError(f"{path} is not a regular file", hint="put the file itself in its place")


def _subfolders(folder: Path) -> list[Path]:
    return [folder / name for name in _names(folder) if os.path.isdir(folder / name)]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


@contextmanager
def opened_by_user(path: Path) -> Iterator[BinaryIO]:
    """Open a file that the user names: a regular one, or what the shell hands over as one (``<(command)``, /dev/stdin).

    Raises:
        OSError: It cannot be opened, or is something that may never end.
    """
    handed = _HANDED.match(os.path.abspath(path)) is not None
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not (stat.S_ISREG(mode) or handed and not stat.S_ISBLK(mode)):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    with open(path, "rb") as file:
        yield file


def read_exactly(fd: int, size: int, offset: int, path: Path) -> bytes:
    """``size`` bytes at ``offset``; WeightsError where the file ends before."""
    chunks = []
    while size > 0:
        chunk = os.pread(fd, min(size, 1 << 26), offset)
        if not chunk:
            raise WeightsError(f"{path} ends at byte {offset}, {size} bytes are missing", hint="get the file again")
        chunks.append(chunk)
        offset += len(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def refuse_placeholder(
    start: bytes, path: Path, error: type[SourceError] = WeightsError, *, web_page: bool = True
) -> None:
    """Raise ``error`` if the first bytes are a git-LFS pointer or, where that cannot be meant, a web page."""
    if start.startswith(LFS_MAGIC):
        raise error(
            f"{path} is a git-LFS pointer, not the file itself",
            hint="run `git lfs install && git lfs pull` in the folder, or download the repository with `hf download`",
        )
    if web_page and start[:64].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise error(f"{path} is a web page, not the file itself", hint="download it again; a login may be needed")
