"""Hashes of the source's weight files, computed while the conversion goes on."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from mlxport.errors import Interrupted
from mlxport.output.record import weight_name
from mlxport.source import hash_file
from mlxport.types import Checkpoint

__all__ = ["Hashes"]


class Hashes:
    """sha256 of the source's weight files, on a thread beside the conversion (which finds them in the page cache)."""

    def __init__(self, checkpoint: Checkpoint, start: bool = True) -> None:
        self._files = {weight_name(checkpoint, path): path for path in checkpoint.weight_files}
        self._pool = ThreadPoolExecutor(1)
        self._stopped = threading.Event()
        self._result: Future[dict[str, str]] | None = self._pool.submit(self._run) if start else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread, finished or not."""
        self._stopped.set()
        self._pool.shutdown(wait=True)

    def _run(self) -> dict[str, str]:
        return {name: hash_file(path, self._check) for name, path in self._files.items()}

    def _check(self, _: int) -> None:
        if self._stopped.is_set():
            raise Interrupted("stopped")

    def result(self) -> dict[str, str]:
        """File name to hash; waits for it."""
        assert self._result is not None
        return self._result.result()
