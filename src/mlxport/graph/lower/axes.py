"""Subscripts and orders of axes as lowerings write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxport.graph.lower.expr import same_size

__all__ = ["at", "axis", "brief", "each", "is_whole", "known"]

FULL = slice(None)


def axis(dim: int, ndim: int) -> int:
    """``dim`` counted from the front; a scalar has one axis for this purpose, as in torch."""
    return dim % max(ndim, 1)


def at(dim: int, ndim: int, item: Any) -> Any:
    """The subscript that applies ``item`` to axis ``dim``: ``x[item]``, ``x[:, item]``, ``x[..., item]``."""
    dim = axis(dim, ndim)
    if dim == 0:
        return item
    return (..., item) if dim == ndim - 1 and ndim > 2 else (*[FULL] * dim, item)


def each(value: Sequence[Any], rank: int) -> tuple[Any, ...]:
    """One number for each of ``rank`` axes."""
    return tuple(value) * rank if len(value) == 1 else tuple(value)


def brief(value: Sequence[Any]) -> Any:
    """One number where all axes agree."""
    return value[0] if all(same_size(other, value[0]) for other in value[1:]) else tuple(value)


def is_whole(part: slice) -> bool:
    """Whether a slice takes everything."""
    return part.start is None and part.stop is None and part.step is None


def known(*sizes: Any) -> bool:
    """Whether all the sizes are fixed."""
    return all(isinstance(size, int) for size in sizes)
