"""Bytes of tensors into memory: positioned reads, no mapping, so only what is asked for becomes resident."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.errors import SourceError, WeightsError
from mlxport.source.safe_files import open_regular, opened
from mlxport.types import DTYPE_BITS, TensorRef

if TYPE_CHECKING:  # who only looks at a folder does not wait for NumPy
    import numpy as np
    import numpy.typing as npt

    _Bytes = npt.NDArray[np.uint8]

_HASH_BLOCK = 4 << 20
_COMPARED_BLOCK = 8 << 20  # of each of two tensors
# Linux and macOS both stop a single read short of 2 GiB.
_READ_LIMIT = 1 << 30
# A strided block is read at once and gathered in memory when it spans no more than this, and is not mostly gaps.
_GATHER_LIMIT = 64 << 20
_PAGE = 4096


class _Files:
    """Open descriptors by path, a bounded number of them; one that is being read from is never closed."""

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, _File] = OrderedDict()

    @contextmanager
    def borrow(self, path: Path) -> Iterator[int]:
        file = self._acquire(path)
        try:
            yield file.fd
        finally:
            with self._lock:
                file.users -= 1
                file.close_if_idle()

    def _acquire(self, path: Path) -> _File:
        with self._lock:
            file = self._open.get(path)
            # The path may have got another file since: compare what it names now with what is open.
            if file is None or file.identity != _identity(path):
                if file is not None:
                    self._drop(path)
                file = _File(open_regular(path))
                self._open[path] = file
            file.users += 1
            self._open.move_to_end(path)
            while len(self._open) > self._limit:
                self._drop(next(iter(self._open)))
            return file

    def _drop(self, path: Path) -> None:
        file = self._open.pop(path)
        file.dropped = True
        file.close_if_idle()


class _File:
    def __init__(self, fd: int) -> None:
        status = os.fstat(fd)
        self.fd = fd
        self.identity = (status.st_dev, status.st_ino)
        self.users = 0
        self.dropped = False

    def close_if_idle(self) -> None:
        if self.dropped and self.users == 0 and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


_files = _Files()


def read_rows(ref: TensorRef, start: int = 0, stop: int | None = None, scratch: _Bytes | None = None) -> _Bytes:
    """The bytes of rows ``start`` to ``stop`` along axis 0, row-major, as 1-D uint8; all of a tensor without axes.

    Thread-safe; every call reads into a buffer of its own, or into ``scratch`` where that is large enough
    (fresh pages cost as much as the copy itself).

    Raises:
        WeightsError: The file is gone, or has shrunk since it was opened.
    """
    import numpy as np

    rows = ref.shape[0] if ref.shape else 1
    stop = rows if stop is None else stop
    if not 0 <= start <= stop <= rows:
        raise ValueError(f"rows {start} to {stop} of {ref.name!r}, which has {rows}")
    itemsize = DTYPE_BITS[ref.dtype] // 8
    if ref.made is not None:
        return ref.made(start, stop)
    if ref.held is not None:
        row_bytes = prod(ref.shape[1:]) * itemsize
        return ref.held[start * row_bytes : stop * row_bytes].copy()
    with _files.borrow(ref.path) as fd:
        if ref.strides is not None:
            shape = (stop - start, *ref.shape[1:]) if ref.shape else ()
            offset = ref.offset + (start * ref.strides[0] * itemsize if ref.shape else 0)
            out = np.empty(shape, f"V{itemsize}")
            if out.size:
                _gather(fd, offset, ref.strides, out, ref)
            return out.reshape(-1).view(np.uint8)
        row_bytes = prod(ref.shape[1:]) * itemsize
        size = (stop - start) * row_bytes
        own = scratch is None or size > scratch.size
        buffer = np.empty(size, np.uint8) if own else scratch[:size]  # type: ignore[index]
        _fill(fd, buffer, ref.offset + start * row_bytes, ref)
        return buffer


def _fill(fd: int, buffer: _Bytes, offset: int, ref: TensorRef) -> None:
    done = 0
    while done < buffer.size:
        try:
            count = os.preadv(fd, [buffer[done : done + _READ_LIMIT].data], offset + done)
        except OSError as error:
            raise WeightsError(f"{ref.path} cannot be read at byte {offset + done}: {error.strerror}") from error
        if count == 0:
            raise WeightsError(
                f"{ref.path} has shrunk while it was read: tensor {ref.name!r} ends at byte {offset + buffer.size}, "
                f"the file at {os.fstat(fd).st_size}",
                hint="let nothing write to the checkpoint, and run again",
            )
        done += count


def _gather(fd: int, offset: int, strides: tuple[int, ...], out: npt.NDArray[Any], ref: TensorRef) -> None:
    """Fill ``out`` from elements that lie ``strides`` apart, in pieces along the axis with the largest stride."""
    import numpy as np

    item = out.dtype.itemsize
    span = (1 + sum((n - 1) * step for n, step in zip(out.shape, strides, strict=True))) * item
    if span <= _PAGE or out.size == 1 or span <= min(_GATHER_LIMIT, 4 * out.nbytes):
        buffer = np.empty(span, np.uint8)
        _fill(fd, buffer, offset, ref)
        view = buffer.view(out.dtype)
        out[...] = np.lib.stride_tricks.as_strided(view, out.shape, [step * item for step in strides])
        return
    axis = max(range(out.ndim), key=lambda i: strides[i] if out.shape[i] > 1 else -1)
    half = out.shape[axis] // 2
    index = (slice(None),) * axis
    _gather(fd, offset, strides, out[(*index, slice(None, half))], ref)
    _gather(fd, offset + half * strides[axis] * item, strides, out[(*index, slice(half, None))], ref)


def same_bytes(first: TensorRef, second: TensorRef) -> bool:
    """Compare two tensors on disk, a few rows at a time."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    rows = first.shape[0] if first.shape else 1
    step = max(1, _COMPARED_BLOCK * rows // max(first.nbytes, 1))
    blocks = ((start, min(start + step, rows)) for start in range(0, rows, step))
    return all((read_rows(first, *block) == read_rows(second, *block)).all() for block in blocks)


def hash_file(path: str | Path, progress: Callable[[int], None] | None = None) -> str:
    """The sha256 of a file, hexadecimal; ``progress`` is called with the number of bytes of each block.

    Raises:
        SourceError: The file cannot be read.
    """
    digest = sha256()
    buffer = bytearray(_HASH_BLOCK)
    view = memoryview(buffer)
    with opened(Path(path), SourceError) as (fd, _):
        while count := os.readv(fd, [buffer]):
            digest.update(view[:count])
            if progress is not None:
                progress(count)
    return digest.hexdigest()
