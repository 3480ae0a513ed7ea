"""Replace functions of MLX in one thread, for as long as something is traced."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["replacing"]

Function = Callable[..., Any]

# The modules of MLX belong to every thread: one at a time replaces what is in them, and only that one sees it.
_lock = threading.RLock()


@contextlib.contextmanager
def replacing(replacements: Iterable[tuple[Any, str, Function]]) -> Iterator[dict[str, Function]]:
    """Let this thread see other functions while the context lasts; all other threads go on with the originals.

    Args:
        replacements: Module, name in it, and what stands for it. A name in two modules must mean one function.

    Yields:
        The originals by name.
    """
    owner = threading.get_ident()

    def here(original: Function, replacement: Function) -> Function:
        def call(*args: Any, **kwargs: Any) -> Any:
            return (replacement if threading.get_ident() == owner else original)(*args, **kwargs)

        return call

    with _lock:
        replaced = [(home, name, getattr(home, name), new) for home, name, new in replacements]
        try:
            for home, name, original, new in replaced:
                setattr(home, name, here(original, new))
            yield {name: original for _, name, original, _ in replaced}
        finally:
            for home, name, original, _ in replaced:
                setattr(home, name, original)
