"""How much memory there is to work in."""

from __future__ import annotations

import os

from mlxport.errors import UnsupportedError

__all__ = ["available_memory", "refuse_large"]


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
