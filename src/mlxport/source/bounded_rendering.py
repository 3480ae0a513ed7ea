"""Bounds on what rendering a chat template may take: time, memory, and the length of what it writes.

jinja's sandbox keeps a template from the system, not from looping for ever, from ``'a' * 10**12`` or from ``9**9**9``.
A template in a folder is as little trusted as the rest of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import operator
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["EndlessTemplate", "bounded"]

SECONDS = 5.0
_MOST_MORE_BYTES = 256 << 20
_MOST_ITEMS = 10_000_000  # of a sequence that is repeated
_MOST_BITS = 1 << 16  # of a number
_COSTLY = {"*": operator.mul, "**": operator.pow, "//": operator.floordiv, "%": operator.mod}
_jinja = threading.RLock()  # its classes belong to every thread
_STATM = Path("/proc/self/statm")


class EndlessTemplate(Exception):
    """A template took more than it may; the message says of what."""

    def __init__(self, what: str = "") -> None:
        super().__init__(what or f"it is not done after {SECONDS:.1g} seconds")


@contextlib.contextmanager
def bounded(seconds: float | None = None) -> Iterator[None]:
    """What is rendered in here ends: by itself, or by the error below.

    Raises:
        EndlessTemplate: It took longer, more memory (where the system can bound that: on Linux), or asked for a product
            that nobody needs.
    """
    with _bounded_products(), _bounded_memory(), _bounded_time(SECONDS if seconds is None else seconds):
        yield


@contextlib.contextmanager
def _bounded_time(seconds: float) -> Iterator[None]:
    """Raise in this thread, whichever it is, when the time is over: a signal would reach the main thread only."""
    lock, done, thread = threading.Lock(), threading.Event(), threading.get_ident()

    def stop() -> None:
        with lock:
            if not done.is_set():
                _raise_in(thread, EndlessTemplate)

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            done.set()
        timer.cancel()
        _raise_in(thread, None)  # what was raised in the last moment and has not arrived


def _raise_in(thread: int, kind: type[Exception] | None) -> None:
    """Have a thread raise between two of its steps, or nothing of what it was to raise."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(kind) if kind is not None else None
    )


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let the process map so much more than it has, and no more."""
    if not _STATM.exists():
        yield
        return
    now = int(_STATM.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [bound for bound in (soft, hard, now + _MOST_MORE_BYTES) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    except MemoryError as error:
        raise EndlessTemplate(f"it takes more than {_MOST_MORE_BYTES >> 20} MB of memory") from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _bounded_products() -> Iterator[None]:
    """Have jinja's sandbox ask before it computes: a single step of Python has no end that a time limit could make."""
    from jinja2.sandbox import SandboxedEnvironment as Sandbox

    names = ("intercepted_binops", "default_binop_table")
    with _jinja:
        before = [getattr(Sandbox, name) for name in names]
        asking = {sign: _asking(function) for sign, function in _COSTLY.items()}
        try:
            Sandbox.intercepted_binops = frozenset(asking)
            Sandbox.default_binop_table = {**Sandbox.default_binop_table, **asking}
            yield
        finally:
            for name, value in zip(names, before, strict=True):
                setattr(Sandbox, name, value)


def _asking(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """An operator that refuses numbers and repetitions which no template has a use for."""

    def call(left: Any, right: Any) -> Any:
        bits = [abs(value).bit_length() for value in (left, right) if isinstance(value, int)]
        many = len(bits) == 2 and function is operator.pow and bits[0] * abs(right) > _MOST_BITS
        if many or max(bits, default=0) > _MOST_BITS:
            raise EndlessTemplate("it computes with numbers of too many digits")
        for sequence, times in ((left, right), (right, left)):
            if function is operator.mul and isinstance(times, int) and isinstance(sequence, (str, bytes, list, tuple)):
                if len(sequence) * times > _MOST_ITEMS:
                    raise EndlessTemplate(f"it repeats something {times:.3g} times")
        return function(left, right)

    return call
