"""From mlx-lm's tensors back to a checkpoint's, by mlx-lm's own layout of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mlxport.types import Checkpoint

if TYPE_CHECKING:
    import mlx.core as mx

    from mlxport.transform import Program

__all__ = ["Invert", "own_inverse"]

Invert = Callable[["Mapping[str, mx.array]"], "dict[str, mx.array]"]


def own_inverse(checkpoint: Checkpoint, dtype: str = "auto") -> Invert:
    """The inverse of the layout that ``convert`` gives ``checkpoint``, traced once, when it is first called.

    What the returned function raises on its first call is what opening the checkpoint raises; see ``transform.invert``
    for the rest. A conversion that is at hand has the program already: ``functools.partial(invert, program)``.

    Args:
        checkpoint: The original.
        dtype: As it was given to ``convert``.
    """

    @functools.cache
    def program() -> Program:
        from mlxport.layouts.mlx_lm.opening import open_model

        return open_model(checkpoint, dtype=dtype).plain.program

    def inverse(outputs: Mapping[str, mx.array]) -> dict[str, mx.array]:
        from mlxport.transform import invert

        return invert(program(), outputs)

    return inverse
