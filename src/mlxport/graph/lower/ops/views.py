"""Other shapes of the same elements: reshape, broadcast, permute, squeeze, and what copies nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core
from torch.fx import Node

from mlxport.graph.lower.axes import axis, known
from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.registry import op, refuse

Sizes = Sequence[Any]


def reshaped(array: Expr, sizes: Sizes) -> Expr:
    """``array.reshape(...)``; one dynamic size is left to MLX as -1."""
    sizes = list(sizes)
    old = array.shape
    if known(*sizes, *old):
        if tuple(sizes) == tuple(old):
            return array
        if -1 in sizes and 0 in old:  # the elements do not tell what -1 is, but torch accepted it: it is 0
            sizes[sizes.index(-1)] = 0
    elif (
        not any(isinstance(size, int) and size < 1 for size in sizes)
        and sum(not isinstance(size, int) for size in sizes) == 1
    ):
        sizes = [size if isinstance(size, int) else -1 for size in sizes]
    if len(sizes) == 1 and sizes[0] == -1 and array.ndim == 1:
        return array
    return array.reshape(*sizes) if sizes else array.reshape(())


@op("aten.view.default", "aten._unsafe_view.default", "aten.view_copy.default", "aten._reshape_copy.default")
def view(self: Expr, size: Sizes) -> Expr:
    """``x.reshape(size)``."""
    return reshaped(self, size)


@op("aten.reshape.default")
def reshape(self: Expr, shape: Sizes) -> Expr:
    """``x.reshape(shape)``."""
    return reshaped(self, shape)


@op("aten._reshape_alias.default")
def reshape_alias(self: Expr, size: Sizes, stride: Sizes) -> Expr:
    """``x.reshape(size)``: torch has checked that the strides are those of a view."""
    return reshaped(self, size)


@op("aten.view.dtype", "aten.view_copy.dtype")
def view_dtype(self: Expr, dtype: mlx.core.Dtype) -> Expr:
    """The same bytes under another dtype."""
    if self.dtype == dtype:
        return self
    if self.ndim == 0:
        return self.reshape(1).view(dtype).reshape(())
    return self.view(dtype)


@op("aten.expand.default", "aten.expand_copy.default")
def expand(self: Expr, size: Sizes, implicit: bool = False) -> Expr:
    """Broadcast, new axes in front; -1 keeps a size."""
    added = len(size) - self.ndim
    sizes = [self.shape[index - added] if isinstance(new, int) and new == -1 else new for index, new in enumerate(size)]
    if not added and all(
        new is old or (known(new, old) and new == old) for new, old in zip(sizes, self.shape, strict=True)
    ):
        return self
    return mx.broadcast_to(self, tuple(sizes))


def permuted(array: Expr, order: Sequence[int]) -> Expr:
    """``array.transpose(...)``, ``array.T`` or the array itself."""
    order = [axis(dim, array.ndim) for dim in order]
    if order == list(range(array.ndim)):
        return array
    return array.T if order == [1, 0] else array.transpose(*order)


@op("aten.permute.default", "aten.permute_copy.default")
def permute(self: Expr, dims: Sequence[int]) -> Expr:
    """``x.transpose(dims)``."""
    return permuted(self, dims)


@op("aten.transpose.int", "aten.transpose_copy.int")
def transpose(self: Expr, dim0: int, dim1: int) -> Expr:
    """``x.swapaxes(dim0, dim1)``."""
    first, second = axis(dim0, self.ndim), axis(dim1, self.ndim)
    if first == second:
        return self
    return self.T if self.ndim == 2 else self.swapaxes(dim0, dim1)


@op("aten.t.default", "aten.t_copy.default")
def t(self: Expr) -> Expr:
    """``x.T``; vectors stay."""
    return self.T if self.ndim == 2 else self


def squeezed(array: Expr, dims: Sequence[int]) -> Expr:
    """Without those of ``dims`` whose size is 1."""
    axes = sorted({axis(dim, array.ndim) for dim in dims}) if array.ndim else []
    axes = [dim for dim in axes if isinstance(array.shape[dim], int) and array.shape[dim] == 1]
    if not axes:
        return array
    return array.squeeze(axes[0] if len(axes) == 1 else tuple(axes))


@op("aten.squeeze.default", "aten.squeeze_copy.default")
def squeeze(self: Expr) -> Expr:
    """Without all axes of size 1; one of dynamic size stays, as torch.export assumes that it is not 1."""
    return squeezed(self, range(self.ndim))


@op("aten.squeeze.dims", "aten.squeeze_copy.dims")
def squeeze_dims(self: Expr, dim: Sequence[int]) -> Expr:
    """Without the given axes of size 1."""
    return squeezed(self, dim)


@op("aten.squeeze.dim", "aten.squeeze_copy.dim")
def squeeze_dim(self: Expr, dim: int, node: Node | None = None) -> Expr:
    """Without the given axis if its size is 1."""
    if node is not None and node.meta["val"].ndim < self.ndim:  # also where a guard alone says that the size is one
        return self.squeeze(axis(dim, self.ndim))
    return squeezed(self, [dim])


@op("aten.unsqueeze.default", "aten.unsqueeze_copy.default")
def unsqueeze(self: Expr, dim: int) -> Expr:
    """A new axis: ``x[None]``, ``x[:, None]``, ``x[..., None]``."""
    dim %= self.ndim + 1
    if dim == 0:
        return self[None]
    if dim == self.ndim:
        return self[..., None] if dim > 1 else self[:, None]
    return self[(*[slice(None)] * dim, None)] if dim < 3 else mx.expand_dims(self, dim)


@op("aten.view_as_real.default", "aten.view_as_real_copy.default")
def view_as_real(self: Expr) -> Expr:
    """Complex numbers as pairs in a new last axis."""
    if self.ndim == 0:
        return self.reshape(1).view(mx.float32)
    return self[..., None].view(mx.float32)


@op("aten.view_as_complex.default", "aten.view_as_complex_copy.default")
def view_as_complex(self: Expr) -> Expr:
    """Pairs in the last axis as complex numbers."""
    refuse(self.dtype != mx.float32, "MLX has complex64 only")
    return self.view(mx.complex64).squeeze(-1)


@op("aten.resize.default")
def resize(self: Expr, size: Sizes) -> Expr:
    """Elements in another shape; more elements than there are would be uninitialised memory."""
    refuse(not known(*size, *self.shape), "resize of a dynamic size")
    count = 1
    for item in size:
        count *= item
    refuse(count > self.size, "resize to more elements: their values are undefined")
    return reshaped(self if count == self.size else self.flatten()[:count], size)
