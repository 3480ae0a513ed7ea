"""Pooling: ``mlx.nn``'s layers where they compute what torch computes, composed otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxport.graph.lower.axes import brief, each
from mlxport.graph.lower.expr import Expr, nn, same_size
from mlxport.graph.lower.helpers import pool as helper
from mlxport.graph.lower.ops.linear import is_integer
from mlxport.graph.lower.registry import call, channels_last

_MAX = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_AVG = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def _batched(x: Expr, rank: int) -> Expr:
    return x if x.ndim == rank + 2 else x[None]


def _unbatched(result: Expr, x: Expr, rank: int) -> Expr:
    return result if x.ndim == rank + 2 else result[0]


def _some(padding: Sequence[Any]) -> bool:
    """Whether there may be padding."""
    return not all(same_size(width, 0) for width in padding)


def _layer(kind: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Any:
    """A pooling layer without the arguments that are at their defaults."""
    options: dict[str, Any] = {}
    if not all(same_size(one, other) for one, other in zip(stride, kernel, strict=True)):
        options["stride"] = brief(stride)
    if _some(padding):
        options["padding"] = brief(padding)
    return kind(brief(kernel), **options)


def _max_options(rank: int, padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool) -> dict[str, Any]:
    padding, dilation = each(padding, rank), each(dilation, rank)
    options: dict[str, Any] = {}
    if _some(padding):
        options["padding"] = padding
    if not all(same_size(step, 1) for step in dilation):
        options["dilation"] = dilation
    if ceil_mode:
        options["ceil_mode"] = True
    return options


def _register_max(rank: int) -> None:
    def max_pool(
        self: Expr,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> Expr:
        kernel = each(kernel_size, rank)
        stride = each(stride, rank) if stride else kernel
        x = _batched(self, rank)
        options = _max_options(rank, padding, dilation, ceil_mode)
        if not options.keys() - {"padding"} and not (options and is_integer(self)):
            result = _layer(_MAX[rank], kernel, stride, each(padding, rank))(x)
        else:
            result = call(helper.max_pool, x, kernel, stride, **options)
        return _unbatched(result, self, rank)

    def max_pool_with_indices(
        self: Expr,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> tuple[Expr, Expr]:
        kernel = each(kernel_size, rank)
        stride = each(stride, rank) if stride else kernel
        options = _max_options(rank, padding, dilation, ceil_mode)
        both = call(helper.max_pool_with_indices, _batched(self, rank), kernel, stride, **options)
        return _unbatched(both[0], self, rank), _unbatched(both[1], self, rank)

    channels_last(f"aten.max_pool{rank}d.default", inputs=("self",), spatial=rank)(max_pool)
    channels_last(f"aten.max_pool{rank}d_with_indices.default", inputs=("self",), spatial=rank)(max_pool_with_indices)


def _register_avg(rank: int) -> None:
    def avg_pool(
        self: Expr,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Expr:
        kernel, padding = each(kernel_size, rank), each(padding, rank)
        stride = each(stride, rank) if stride else kernel
        x = _batched(self, rank)
        if not ceil_mode and divisor_override is None and (count_include_pad or not _some(padding)):
            return _unbatched(_layer(_AVG[rank], kernel, stride, padding)(x), self, rank)
        options: dict[str, Any] = {"padding": padding} if _some(padding) else {}
        if ceil_mode:
            options["ceil_mode"] = True
        if not count_include_pad:
            options["count_include_pad"] = False
        if divisor_override is not None:
            options["divisor"] = divisor_override
        return _unbatched(call(helper.avg_pool, x, kernel, stride, **options), self, rank)

    channels_last(f"aten.avg_pool{rank}d.default", inputs=("self",), spatial=rank)(avg_pool)


def _register_adaptive(rank: int) -> None:
    def adaptive_avg_pool(self: Expr, output_size: Sequence[Any]) -> Expr:
        lead = self.ndim - rank - 1
        counts, sizes = each(output_size, rank), self.shape[lead:-1]
        axes = list(range(lead, lead + rank))
        if all(isinstance(count, int) and count == 1 for count in counts):
            return self.mean(axis=brief(axes) if rank == 1 else axes, keepdims=True)
        fixed = all(isinstance(item, int) for item in (*counts, *sizes))
        if fixed and counts == tuple(sizes):
            return self
        if fixed and all(count and size % count == 0 for count, size in zip(counts, sizes, strict=True)):
            split = [part for count, size in zip(counts, sizes, strict=True) for part in (count, size // count)]
            windows = self.reshape(*self.shape[:lead], *split, *self.shape[-1:])
            return windows.mean(axis=[lead + 1 + 2 * axis for axis in range(rank)])
        return _unbatched(call(helper.adaptive_avg_pool, _batched(self, rank), counts), self, rank)

    def adaptive_max_pool(self: Expr, output_size: Sequence[int]) -> tuple[Expr, Expr]:
        both = call(helper.adaptive_max_pool, _batched(self, rank), each(output_size, rank))
        return _unbatched(both[0], self, rank), _unbatched(both[1], self, rank)

    keys = [f"aten.adaptive_avg_pool{rank}d.default"] + [f"aten._adaptive_avg_pool{rank}d.default"] * (rank > 1)
    channels_last(*keys, inputs=("self",), spatial=rank)(adaptive_avg_pool)
    channels_last(f"aten.adaptive_max_pool{rank}d.default", inputs=("self",), spatial=rank)(adaptive_max_pool)


for _rank in (1, 2, 3):
    _register_max(_rank)
    _register_avg(_rank)
    _register_adaptive(_rank)
