"""Hashes of the source's files, computed while the conversion goes on, and whether the files stayed what they were."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from mlxport.errors import Interrupted, SourceError
from mlxport.output.record import weight_name
from mlxport.source import hash_file
from mlxport.source.file_state import changed_files, state_of
from mlxport.types import Checkpoint, FileState

__all__ = ["Hashes"]


@dataclass(frozen=True)
class _Hashed:
    """A file's hash, and its state before and after it was read."""

    sha256: str
    before: FileState | None
    after: FileState | None


class Hashes:
    """sha256 of the source's files, on a thread beside the conversion (which finds them in the page cache)."""

    def __init__(self, checkpoint: Checkpoint, start: bool = True) -> None:
        self._checkpoint = checkpoint
        self._pool = ThreadPoolExecutor(1)
        self._stopped = threading.Event()
        self._result: Future[dict[Path, _Hashed]] | None = self._pool.submit(self._run) if start else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread, finished or not."""
        self._stopped.set()
        self._pool.shutdown(wait=True)

    def _run(self) -> dict[Path, _Hashed]:
        weights = self._checkpoint.weight_files
        small = [path for path in self._checkpoint.states if path not in weights]
        return {path: self._hashed(path) for path in (*small, *weights)}

    def _hashed(self, path: Path) -> _Hashed:
        before = state_of(path)
        return _Hashed(hash_file(path, self._check), before, state_of(path))

    def _check(self, _: int) -> None:
        if self._stopped.is_set():
            raise Interrupted("stopped")

    def result(self) -> dict[str, str]:
        """Hash of each weight file by its name in the record; waits for them."""
        assert self._result is not None
        found = self._result.result()
        return {weight_name(self._checkpoint, path): found[path].sha256 for path in self._checkpoint.weight_files}

    def refuse_changes(self) -> None:
        """Refuse a source that is not what it was when it was opened: parts of the output would be of either.

        Raises:
            SourceError: Names the first file that changed, and what tells.
        """
        for path, difference in changed_files(self._checkpoint).items():
            if not self._same_content(path):
                hint = "let nothing write to the source, and run the same command again: it starts anew"
                raise SourceError(f"{path} changed while it was converted: {difference}", hint=hint)

    def _same_content(self, path: Path) -> bool:
        """Whether a file with another state may hold what it held: it got another owner, another link or the like."""
        opened, now = self._checkpoint.states[path], state_of(path)
        if now is None or replace(now, changed=opened.changed) != opened:
            return False
        if self._result is None or not self._result.done():
            return True  # nothing is known yet; it is asked again before the end
        if self._result.exception() is not None:
            return False
        hashed = self._result.result()[path]
        return hashed.before == hashed.after == opened and hash_file(path) == hashed.sha256
