"""Processes for a sweep: one that hangs or dies costs its own case only."""

from __future__ import annotations

import os
import queue
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_SPAWN = get_context("spawn")
_TASKS = 60  # after so many a process is replaced: torch keeps what it has compiled


def failure(error: BaseException) -> str:
    """An exception in one line, with the place that raised it."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text} ({Path(where.filename).name}:{where.lineno})"


def _serve(check: Callable[[Any], Any], connection: Connection) -> None:
    while (task := connection.recv()) is not None:
        connection.send(check(task))
    os._exit(0)  # the libraries' own threads may hang at a clean exit


class _Worker:
    def __init__(self, check: Callable[[Any], Any]) -> None:
        self.check = check
        self.start()

    def start(self) -> None:
        self.connection, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(self.check, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.left = _TASKS

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def run(self, task: Any, limit: float) -> tuple[Any, str]:
        if not self.left:
            self.stop()
            self.start()
        self.left -= 1
        self.connection.send(task)
        try:
            if self.connection.poll(limit):
                return self.connection.recv(), ""
            reason = f"no result after {limit:.0f} s"
        except EOFError:
            reason = "the process died"
        self.stop()
        self.start()
        return None, reason


def outcomes(
    check: Callable[[Any], Any], tasks: Iterable[Any], workers: int, limit: float
) -> Iterator[tuple[Any, Any, str]]:
    """Each task in order with ``check(task)``, computed in other processes, or with None and why there is no result."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    idle: queue.Queue[_Worker] = queue.Queue()
    for _ in range(workers):
        idle.put(_Worker(check))

    def run(task: Any) -> tuple[Any, Any, str]:
        worker = idle.get()
        try:
            return task, *worker.run(task, limit)
        finally:
            idle.put(worker)

    try:
        with ThreadPoolExecutor(workers) as threads:
            yield from threads.map(run, tasks)
    finally:
        while not idle.empty():
            idle.get().stop()
