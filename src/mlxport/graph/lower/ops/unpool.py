"""Fractional pooling, the inverses of max pooling, and patches as columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxport.graph.lower.axes import each
from mlxport.graph.lower.expr import Expr
from mlxport.graph.lower.helpers import unpool as helper
from mlxport.graph.lower.registry import call, channels_last, op


def _register_fractional(rank: int) -> None:
    def fractional_max_pool(
        self: Expr, kernel_size: Sequence[int], output_size: Sequence[int], random_samples: Expr
    ) -> tuple[Expr, Expr]:
        x = self if self.ndim == rank + 2 else self[None]
        both = call(helper.fractional_max_pool, x, each(kernel_size, rank), each(output_size, rank), random_samples)
        return (both[0], both[1]) if self.ndim == rank + 2 else (both[0][0], both[1][0])

    channels_last(f"aten.fractional_max_pool{rank}d.default", inputs=("self",), spatial=rank)(fractional_max_pool)


for _rank in (2, 3):
    _register_fractional(_rank)


@op("aten.max_unpool2d.default")
def max_unpool2d(self: Expr, indices: Expr, output_size: Sequence[Any]) -> Expr:
    """Zeros with the values where their indices say."""
    return call(helper.max_unpool, self, indices, tuple(output_size))


@op("aten.max_unpool3d.default")
def max_unpool3d(
    self: Expr, indices: Expr, output_size: Sequence[Any], stride: Sequence[int], padding: Sequence[int]
) -> Expr:
    """Zeros with the values where their indices say; stride and padding are in the output size already."""
    return call(helper.max_unpool, self, indices, tuple(output_size))


@op("aten.max_pool2d_with_indices_backward.default")
def max_pool2d_with_indices_backward(
    grad_output: Expr,
    self: Expr,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Expr,
) -> Expr:
    """The gradient added where each maximum was; the indices say all that the windows do."""
    return call(helper.max_pool_backward, grad_output, self, indices, 2)


@op("aten.im2col.default")
def im2col(
    self: Expr, kernel_size: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> Expr:
    """Patches as columns (``nn.Unfold``)."""
    return call(helper.im2col, self, *(each(item, 2) for item in (kernel_size, dilation, padding, stride)))


@op("aten.col2im.default")
def col2im(
    self: Expr,
    output_size: Sequence[Any],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Expr:
    """Columns summed at their places (``nn.Fold``)."""
    return call(
        helper.col2im, self, tuple(output_size), *(each(item, 2) for item in (kernel_size, dilation, padding, stride))
    )
