"""From mlx-lm's tensors back to a checkpoint's, by mlx-lm's own layout of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mlxport.types import Checkpoint, ModelPart

if TYPE_CHECKING:
    import mlx.core as mx

    from mlxport.layouts.conversion import TracedModel
    from mlxport.transform import Program

__all__ = ["Invert", "own_inverse"]

Invert = Callable[["Mapping[str, mx.array]"], "dict[str, mx.array]"]


def own_inverse(
    checkpoint: Checkpoint, dtype: str = "auto", traces: Callable[[Checkpoint, str], TracedModel] | None = None
) -> OwnInverse:
    """The inverse of the layout that ``convert`` gives ``checkpoint``, traced once, when it is first called.

    What the returned function raises on its first call is what opening the checkpoint raises; see ``transform.invert``
    for the rest. A conversion that is at hand has the program already: ``functools.partial(invert, program)``.

    Args:
        checkpoint: The original.
        dtype: As it was given to ``convert``.
        traces: The model of a checkpoint in a dtype, as its layout has it; None is mlx-lm's own.
    """
    from mlxport.layouts.mlx_lm.layout import MLX_LM

    traces = traces or MLX_LM.traces
    assert traces is not None
    return OwnInverse(checkpoint, dtype, traces)


@dataclass(frozen=True)
class OwnInverse:
    """The layout that ``convert`` gives a checkpoint, read backwards; see ``own_inverse``."""

    checkpoint: Checkpoint
    dtype: str
    traces: Callable[[Checkpoint, str], TracedModel]

    @cached_property
    def program(self) -> Program:
        """From the checkpoint's tensors to the output's."""
        return self.traces(self.checkpoint, self.dtype).plain.program

    def __call__(self, outputs: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The checkpoint's tensors of mlx-lm's."""
        from mlxport.transform import invert

        return invert(self.program, outputs)

    def left_out(self) -> tuple[ModelPart, ...]:
        """The parts of the checkpoint that mlx-lm's layout of it has no place for."""
        from mlxport.layouts.left_out import left_out

        return left_out(self.checkpoint, self.program)
