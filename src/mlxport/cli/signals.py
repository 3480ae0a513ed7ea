"""Ends of a process that come from outside: what is unfinished is put away, and the process ends as it was asked to."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

__all__ = ["ending_well"]

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_MOMENT = 0.01  # seconds; where that falls into the next finaliser, it begins again


@contextmanager
def ending_well() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the program as Ctrl-C does, so that nothing temporary stays behind; once.

    The process then dies of that signal, as whoever sent it expects. A second one kills at once. And a Ctrl-C that
    falls into a finaliser, where Python prints exceptions and goes on, counts all the same.
    """
    received: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        received.append(number)
        raise KeyboardInterrupt

    for number in _ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP: so do we
            signal.signal(number, end)
    sys.unraisablehook = _passed_on(sys.unraisablehook)
    try:
        yield
    finally:
        if received:
            with suppress(OSError):
                sys.stdout.flush()
            signal.signal(received[0], signal.SIG_DFL)
            os.kill(os.getpid(), received[0])


def _passed_on(known: Any) -> Any:
    """A hook that interrupts the program where a finaliser was interrupted: a moment later, for it is still inside."""

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            threading.Timer(_MOMENT, _thread.interrupt_main).start()
        else:
            known(unraisable)

    return hook
