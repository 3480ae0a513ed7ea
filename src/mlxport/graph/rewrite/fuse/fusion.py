"""What a fusion reports."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Fusion"]


@dataclass(frozen=True)
class Fusion:
    """A place where a fusion was applied, or declined for a reason.

    Attributes:
        name: The fusion.
        where: Path of the module.
        declined: Why not; empty if it was applied.
    """

    name: str
    where: str
    declined: str = ""
