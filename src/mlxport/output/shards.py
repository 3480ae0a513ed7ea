"""Stream the tensors of one shard into one safetensors file.

The header is known from the plan, so the file has its final size before a tensor is computed. Worker threads read and
compute blocks of rows, each on an MLX stream of its own; this thread writes them at their place and feeds the hash.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxport.output.atomic_files import replacing
from mlxport.output.blocks import Block, Buffers, Findings, block_tasks
from mlxport.transform import Program
from mlxport.types import Shard


@dataclass(frozen=True)
class Written:
    """A finished shard: its hash, its size with header, and what was found in it."""

    sha256: str
    nbytes: int
    findings: Findings


def header(shard: Shard, framework: str = "mlx") -> bytes:
    """The safetensors header of a shard, length prefix included, padded to 8 bytes; metadata say whose tensors it has.

    mlx-lm writes ``mlx`` there, transformers ``pt``.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": framework}}
    offset = 0
    for tensor in shard.tensors:
        end = offset + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_shard(
    program: Program,
    shard: Shard,
    path: Path,
    *,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda n: None,
    framework: str = "mlx",
) -> Written:
    """Write ``shard`` to ``path``, which appears only when it is complete and on disk.

    Args:
        program: Computes the tensors.
        shard: What to write.
        path: The file; ``path`` with ``.tmp`` appended is used meanwhile.
        workers: Threads that read and compute; default one a core, at most 8.
        advance: Called with the number of bytes just written.
        framework: As of ``header``.

    Raises:
        DiskError: No space is left; the unfinished file is removed.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    with replacing(path) as file:
        buffers = Buffers()
        writer = _Writer(file.fileno(), shard, buffers, framework)
        tasks = block_tasks(program, shard, buffers)
        with contextlib.closing(_in_order(_pool(workers), tasks, ahead=2 * workers + 1)) as blocks:
            for block in blocks:
                writer.put(block)
                advance(sum(data.nbytes for _, _, data in block.parts))
            digest = writer.finish()
    return Written(digest, path.stat().st_size, writer.findings)


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads for good: MLX makes one of its own beside each that computes, and never ends it."""
    return ThreadPoolExecutor(workers)


def _in_order(
    pool: ThreadPoolExecutor, tasks: Iterator[Callable[[], Block]], ahead: int
) -> Generator[Block, None, None]:
    """Results of ``tasks`` in their order, at most ``ahead`` of them computed or under way beyond the one wanted.

    Closed before its end, it returns when nothing is under way any more.
    """
    pending: deque[Future[Block]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(task))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        wait([future for future in pending if not future.cancel()])


class _Writer:
    """Puts blocks at their place and hashes the file in its own order, on a thread beside."""

    def __init__(self, descriptor: int, shard: Shard, buffers: Buffers, framework: str) -> None:
        self._buffers = buffers
        self._lent: np.ndarray[Any, Any] | None = None
        self.findings = Findings()
        self._descriptor = descriptor
        head = header(shard, framework)
        self._offsets, position = {}, len(head)
        for tensor in shard.tensors:
            self._offsets[tensor.name] = position
            position += tensor.nbytes
        os.truncate(descriptor, position)
        _pwrite(descriptor, head, 0)
        self._size = position
        self._hasher = hashlib.sha256(head)
        self._hashed = len(head)
        self._waiting: dict[int, int] = {}
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def put(self, block: Block) -> None:
        """Write every part of a block; parts ahead of the hash are read back when it is their turn."""
        self.findings.merge(block.findings)
        for name, start, data in block.parts:
            if not data.nbytes:
                continue
            position = self._offsets[name] + start
            previous, lent = self._last, self._lent
            in_turn = position == self._hashed
            if in_turn:
                self._hashed += data.nbytes
                self._last = self._thread.submit(self._hasher.update, data.data)
            self._lent = block.buffer if in_turn else None
            _pwrite(self._descriptor, data, position)
            if in_turn:
                self._catch_up()
            else:
                self._waiting[position] = data.nbytes
                self._buffers.give_back(block.buffer)
            if previous is not None:
                previous.result()
                self._buffers.give_back(lent)

    def _catch_up(self) -> None:
        """Hash what was written ahead and whose turn has come."""
        start = self._hashed
        while size := self._waiting.pop(self._hashed, 0):
            self._hashed += size
        if self._hashed > start:
            self._last = self._thread.submit(self._read_back, start, self._hashed)

    def _read_back(self, start: int, stop: int) -> None:
        while start < stop:
            data = os.pread(self._descriptor, min(stop - start, 4 << 20), start)
            if not data:
                raise OSError(errno.EIO, "what was just written cannot be read back")
            self._hasher.update(data)
            start += len(data)

    def finish(self) -> str:
        """The hash of the whole file."""
        self._thread.shutdown(wait=True)
        if self._last is not None:
            self._last.result()
        if self._hashed != self._size or self._waiting:
            raise RuntimeError(f"wrote {self._hashed} of {self._size} bytes in order")
        return self._hasher.hexdigest()


def _pwrite(descriptor: int, data: bytes | np.ndarray[Any, Any], offset: int) -> None:
    view = memoryview(data if isinstance(data, bytes) else data.data).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
