"""How far long work has come: a bar on a terminal, now and then a line elsewhere, nothing when quiet; always on stderr.

with make_progress(total_bytes, "converting") as progress:
    progress.advance(n)
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import IO, Any, Protocol, Self

from mlxport.printable import printable

__all__ = ["Progress", "format_bytes", "format_seconds", "listed", "make_progress", "roughly", "three_digits"]

# A line is worth its place when a tenth more is done and some seconds have passed, or after a minute in any case.
_LINE_SECONDS = 5.0
_LINE_SHARE = 0.1
_LINE_ANYWAY_SECONDS = 60.0


class Progress(Protocol):
    """What the engine reports to; every method may be called from any thread."""

    def advance(self, nbytes: int) -> None:
        """Count `nbytes` more as done."""

    def message(self, text: str) -> None:
        """Say something worth a line of its own."""

    def stage(self, label: str, total: int) -> None:
        """Begin the next stage, of `total` bytes (0 when unknown)."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def make_progress(total: int, label: str, quiet: bool = False, stream: IO[str] | None = None) -> Progress:
    """Return what suits `stream` (stderr unless given): a bar, lines, or nothing."""
    if quiet:
        return _Quiet()
    out = sys.stderr if stream is None else stream
    if out.isatty() and os.environ.get("TERM") != "dumb":
        return _Bar(total, label, out)
    return _Lines(total, label, out)


def format_bytes(nbytes: float) -> str:
    """Return decimal units, as disks are sold: ``2.47 GB``."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= 0.9995 * size:  # what three digits would round to 1000 of the unit below
            return f"{three_digits(nbytes / size)} {unit}"
    return f"{nbytes:.0f} B"


def format_seconds(seconds: float) -> str:
    """Return ``4.2 s``, ``12:05`` or ``1:12:05``."""
    whole = int(seconds + 0.5)
    if whole >= 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"
    return f"{whole // 60}:{whole % 60:02}" if whole >= 60 else f"{seconds:.1f} s"


# What a forecast is told in: unit, its seconds, and from how many seconds on.
_ROUGHLY = (
    ("year", 31_557_600, 63_115_200),
    ("month", 2_629_800, 5_184_000),
    ("day", 86_400, 172_800),
    ("hour", 3600, 5400),
    ("minute", 60, 90),
    ("second", 1, 0),
)


def roughly(seconds: float) -> str:
    """What a forecast of a duration is good for, in words: ``12 hours``, ``40 seconds``, ``2 years``."""
    unit, length = next((unit, length) for unit, length, least in _ROUGHLY if seconds >= least)
    count = max(seconds / length, 1)
    whole = round(count) if count < 20 else 5 * round(count / 5)
    return f"{whole:,} {unit}{'s' if whole != 1 else ''}"


def three_digits(value: float) -> str:
    """A figure in three digits; from 1,000 on whole, never as ``1e+03``."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def listed(names: Iterable[str], most: int = 4) -> str:
    """The first names, and how many there are beside: ``a, b and 3 more``."""
    found = [*names]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


class _Quiet:
    def advance(self, nbytes: int) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def stage(self, label: str, total: int) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class _Lines:
    """For logs and pipes."""

    def __init__(self, total: int, label: str, out: IO[str]) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._begin(label, total)

    def _begin(self, label: str, total: int) -> None:
        self._label, self._total = label, total
        self._done = self._told = 0
        self._started = self._told_at = time.monotonic()

    def advance(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            now = time.monotonic()
            waited = now - self._told_at
            due = waited >= _LINE_SECONDS and self._done - self._told >= _LINE_SHARE * self._total
            if due or waited >= _LINE_ANYWAY_SECONDS:
                self._told, self._told_at = self._done, now
                self._print(self._line(now))

    def message(self, text: str) -> None:
        with self._lock:
            self._print(text)

    def stage(self, label: str, total: int) -> None:
        with self._lock:
            self._finish()
            self._begin(label, total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            with self._lock:
                self._finish()

    def _line(self, now: float) -> str:
        rate = self._done / max(now - self._started, 1e-9)
        if self._total <= 0:
            return f"{self._label}: {format_bytes(self._done)}, {format_bytes(rate)}/s"
        left = max(self._total - self._done, 0) / max(rate, 1e-9)
        share = min(self._done / self._total, 1)
        of = f"{format_bytes(self._done)} of {format_bytes(self._total)} ({share:.0%})"
        return f"{self._label}: {of}, {format_bytes(rate)}/s, {format_seconds(left)} left"

    def _finish(self) -> None:
        if self._done:
            seconds = time.monotonic() - self._started
            rate = format_bytes(self._done / max(seconds, 1e-9))
            self._print(f"{self._label}: {format_bytes(self._done)} in {format_seconds(seconds)}, {rate}/s")

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk under a log is no reason to end the work
            print(printable(text), file=self._out, flush=True)


class _Bar:
    """For terminals; rich honours NO_COLOR."""

    def __init__(self, total: int, label: str, out: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=out),
        )
        self._lock = threading.Lock()
        self._task = self._add(label, total)

    def _add(self, label: str, total: int) -> Any:
        return self._bar.add_task(printable(label), total=total if total > 0 else None)

    def advance(self, nbytes: int) -> None:
        with self._lock:
            self._bar.advance(self._task, nbytes)

    def message(self, text: str) -> None:
        self._bar.console.print(printable(text), markup=False, highlight=False)

    def stage(self, label: str, total: int) -> None:
        with self._lock:
            self._bar.stop_task(self._task)
            self._task = self._add(label, total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()
