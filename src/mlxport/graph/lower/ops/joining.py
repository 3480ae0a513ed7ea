"""Arrays put together, repeated, flipped and rolled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxport.graph.lower.axes import axis, known
from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.ops.views import reshaped
from mlxport.graph.lower.registry import op, refuse


@op("aten.cat.default", "aten.concat.default")
def cat(tensors: Sequence[Expr], dim: int = 0) -> Expr:
    """``mx.concatenate``; torch ignores arrays of shape (0,) among others."""
    kept = [item for item in tensors if item.ndim > 1 or not known(item.shape[0]) or item.shape[0]]
    if len(kept) < 2:
        return (kept or list(tensors))[0]
    dim = axis(dim, kept[0].ndim)
    return mx.concatenate(kept, axis=dim) if dim else mx.concatenate(kept)


@op("aten.stack.default")
def stack(tensors: Sequence[Expr], dim: int = 0) -> Expr:
    """``mx.stack``."""
    return mx.stack(list(tensors), axis=dim) if dim else mx.stack(list(tensors))


@op("aten.flip.default")
def flip(self: Expr, dims: Sequence[int]) -> Expr:
    """``x[:, ::-1]``."""
    axes = {axis(dim, self.ndim) for dim in dims} if self.ndim else set()
    if not axes:
        return self
    order: list[Any] = [slice(None, None, -1) if dim in axes else slice(None) for dim in range(max(axes) + 1)]
    return self[tuple(order) if len(order) > 1 else order[0]]


@op("aten.roll.default")
def roll(self: Expr, shifts: Sequence[Any], dims: Sequence[int] = ()) -> Expr:
    """``mx.roll``; without axes, of the flattened array."""
    if self.ndim == 0 or (known(*self.shape) and 0 in self.shape):
        return self
    if not dims:
        return mx.roll(self, shifts[0])
    if len(dims) == 1:
        return mx.roll(self, shifts[0], axis=dims[0])
    return mx.roll(self, tuple(shifts), axis=tuple(dims))


@op("aten.rot90.default")
def rot90(self: Expr, k: int = 1, dims: Sequence[int] = (0, 1)) -> Expr:
    """``k`` quarter turns from the first of ``dims`` towards the second."""
    first, second = dims
    match k % 4:
        case 1:
            return flip(self, [second]).swapaxes(first, second)
        case 2:
            return flip(self, dims)
        case 3:
            return flip(self, [first]).swapaxes(first, second)
    return self


@op("aten.repeat.default")
def repeat(self: Expr, repeats: Sequence[Any]) -> Expr:
    """``mx.tile``."""
    added = len(repeats) - self.ndim
    if known(*repeats) and all(count == 1 for count in repeats):
        return reshaped(self, [1] * added + list(self.shape)) if added else self
    refuse(known(*repeats) and 0 in repeats and not known(*self.shape), "repeat 0 times of a dynamic size")
    if known(*repeats) and (0 in repeats or not repeats):
        sizes = [*[1] * added, *self.shape]
        return mx.zeros([count * size for count, size in zip(repeats, sizes, strict=True)], dtype=self.dtype)
    return mx.tile(self, tuple(repeats))
