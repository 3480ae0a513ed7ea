"""How much memory there is to work in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from mlxport.errors import UnsupportedError

__all__ = ["available_memory", "refuse_large", "uncached"]


def available_memory() -> int:
    """Bytes that can be used without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def refuse_large(nbytes: int, what: str, share: float = 0.5) -> None:
    """Refuse a comparison that takes more than a share of the memory that is free.

    Args:
        nbytes: What it takes.
        what: What that is, with ``{}`` where its size stands.
        share: Which share: half, where there is a second of what is counted.

    Raises:
        UnsupportedError: It takes more.
    """
    if nbytes > (limit := int(available_memory() * share)):
        needed, free = (f"{size / 1e9:.1f} GB" for size in (nbytes, limit))
        raise UnsupportedError(
            f"{what.format(needed)}, of which {free} may be taken",
            hint="verify it on a machine with more memory: mlxport verify DST --against SRC",
        )


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Memory that MLX let go of goes back at once."""
    import mlx.core as mx

    limit = mx.set_cache_limit(0)
    try:
        yield
    finally:
        mx.set_cache_limit(limit)
