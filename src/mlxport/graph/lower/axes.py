"""Subscripts and orders of axes as lowerings write them."""

from __future__ import annotations

from typing import Any

__all__ = ["at", "axis", "known"]

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


def known(*sizes: Any) -> bool:
    """Whether all the sizes are fixed."""
    return all(isinstance(size, int) for size in sizes)
