"""Operators of our own: what a capture is to leave whole, one node with its meaning in torch beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["whole_operator"]

_Function = Callable[..., Any]


def whole_operator(schema: str, sizes: _Function) -> Callable[[_Function], _Function]:
    """Make an operator of the decorated function; ``sizes`` gives its results without their values."""

    def register(meaning: _Function) -> _Function:
        made: Any = torch.library.custom_op(f"mlxport::{meaning.__name__}", meaning, mutates_args=(), schema=schema)
        made.register_fake(sizes)
        return made  # type: ignore[no-any-return]

    return register
