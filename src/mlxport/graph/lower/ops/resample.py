"""Resizing (nn.Upsample differs from torch at fractional scales), sampling at grids, channels into space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxport.graph.lower.axes import brief
from mlxport.graph.lower.expr import Expr, nn
from mlxport.graph.lower.helpers import resample as helper
from mlxport.graph.lower.ops.linear import is_integer
from mlxport.graph.lower.registry import call, channels_last, op, refuse


def _repeats(sizes: Sequence[Any], size: Any, scale: Any) -> list[int] | None:
    """Whole factors by which nearest-neighbour resizing repeats each element, if that is all it does."""
    if size is None or (scale is None and all(isinstance(item, int) for item in (*size, *sizes))):
        factors = scale if size is None else [a / b if b else 0.5 for a, b in zip(size, sizes, strict=True)]
        # Up to 16 the reciprocal in float32, which torch multiplies by, gives the same indices as whole division.
        if all(float(factor).is_integer() and 1 <= factor <= 16 for factor in factors):
            return [int(factor) for factor in factors]
    return None


def resize(x: Expr, size: Any, scale: Any, mode: str, align_corners: bool = False, antialias: bool = False) -> Expr:
    """``x``, channels last, resized: ``size`` counts and ``scale`` spaces the samples."""
    refuse(is_integer(x) and "nearest" not in mode, f"{mode} interpolation of integers")
    if scale is not None and any(factor is None for factor in scale):
        refuse(any(factor is not None for factor in scale), "scales for some axes only")
        scale = None
    refuse(size is None and scale is None, "neither a size nor scale factors")
    if "nearest" in mode and (repeats := _repeats(x.shape[1:-1], size, scale)):
        factor = brief(repeats)
        return x if factor == 1 else nn.Upsample(factor)(x)
    options: dict[str, Any] = {} if size is None else {"size": tuple(size)}
    if scale is not None:
        options["scale"] = tuple(scale)
    if mode != "nearest":
        options["mode"] = mode
    if align_corners:
        options["align_corners"] = True
    if antialias:
        options["antialias"] = True
    return call(helper.interpolate, x, **options)


_PLAIN = {"upsample_nearest": "nearest", "_upsample_nearest_exact": "nearest-exact"}
_CORNERS = {
    "upsample_linear1d": ("linear", False),
    "upsample_bilinear2d": ("linear", False),
    "upsample_trilinear3d": ("linear", False),
    "upsample_bicubic2d": ("cubic", False),
    "_upsample_bilinear2d_aa": ("linear", True),
    "_upsample_bicubic2d_aa": ("cubic", True),
    "_upsample_lanczos2d_aa": ("lanczos", True),
}


def _scales(bound: dict[str, Any]) -> Any:
    """The factors of the ``.default`` overloads, which have one argument for each axis."""
    names = ("scales",) if "scales" in bound else ("scales_d", "scales_h", "scales_w")
    return [bound[name] for name in names if name in bound]


def _register_nearest(stem: str, mode: str, rank: int) -> None:
    def vec(input: Expr, output_size: Any, scale_factors: Any) -> Expr:
        return resize(input, output_size, scale_factors, mode)

    def default(self: Expr, output_size: Sequence[Any], **scales: Any) -> Expr:
        return resize(self, output_size, _scales(scales), mode)

    channels_last(f"aten.{stem}{rank}d.vec")(vec)
    channels_last(f"aten.{stem}{rank}d.default", inputs=("self",))(default)


def _register_corners(name: str, mode: str, antialias: bool) -> None:
    def vec(input: Expr, output_size: Any, align_corners: bool, scale_factors: Any) -> Expr:
        return resize(input, output_size, scale_factors, mode, align_corners, antialias)

    def default(self: Expr, output_size: Sequence[Any], align_corners: bool, **scales: Any) -> Expr:
        return resize(self, output_size, _scales(scales), mode, align_corners, antialias)

    channels_last(f"aten.{name}.vec")(vec)
    channels_last(f"aten.{name}.default", inputs=("self",))(default)


for _stem, _mode in _PLAIN.items():
    for _rank in (1, 2, 3):
        _register_nearest(_stem, _mode, _rank)
for _name, (_mode, _antialias) in _CORNERS.items():
    _register_corners(_name, _mode, _antialias)


@channels_last("aten.grid_sampler.default", "aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def grid_sampler(input: Expr, grid: Expr, interpolation_mode: int, padding_mode: int, align_corners: bool) -> Expr:
    """Samples of ``input`` at the places of ``grid``."""
    options: dict[str, Any] = {}
    if interpolation_mode:
        options["mode"] = ("bilinear", "nearest", "bicubic")[interpolation_mode]
    if padding_mode:
        options["padding"] = ("zeros", "border", "reflection")[padding_mode]
    if align_corners:
        options["align_corners"] = True
    return call(helper.grid_sample, input, grid, **options)


@op("aten.affine_grid_generator.default")
def affine_grid_generator(theta: Expr, size: Sequence[Any], align_corners: bool) -> Expr:
    """The grid of an affine map."""
    return call(helper.affine_grid, theta, tuple(size[2:]), **({"align_corners": True} if align_corners else {}))


def _pixel_shuffle_first(self: Expr, upscale_factor: int) -> Expr:
    *lead, channels, height, width = self.shape
    r, n = upscale_factor, self.ndim - 3
    x = self.reshape(*lead, channels // (r * r), r, r, height, width)
    x = x.transpose(*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return x.reshape(*lead, channels // (r * r), height * r, width * r)


@channels_last("aten.pixel_shuffle.default", inputs=("self",), spatial=2, plain=_pixel_shuffle_first)
def pixel_shuffle(self: Expr, upscale_factor: int) -> Expr:
    """``r * r`` channels into ``r`` times the height and the width."""
    *lead, height, width, channels = self.shape
    r, n = upscale_factor, self.ndim - 3
    x = self.reshape(*lead, height, width, channels // (r * r), r, r)
    x = x.transpose(*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return x.reshape(*lead, height * r, width * r, channels // (r * r))


def _pixel_unshuffle_first(self: Expr, downscale_factor: int) -> Expr:
    *lead, channels, height, width = self.shape
    r, n = downscale_factor, self.ndim - 3
    x = self.reshape(*lead, channels, height // r, r, width // r, r)
    x = x.transpose(*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return x.reshape(*lead, channels * r * r, height // r, width // r)


@channels_last("aten.pixel_unshuffle.default", inputs=("self",), spatial=2, plain=_pixel_unshuffle_first)
def pixel_unshuffle(self: Expr, downscale_factor: int) -> Expr:
    """``r`` times the height and the width into ``r * r`` channels."""
    *lead, height, width, channels = self.shape
    r, n = downscale_factor, self.ndim - 3
    x = self.reshape(*lead, height // r, r, width // r, r, channels)
    x = x.transpose(*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return x.reshape(*lead, height // r, width // r, channels * r * r)


def _channel_shuffle_first(self: Expr, groups: int) -> Expr:
    batch, channels, *rest = self.shape
    return self.reshape(batch, groups, channels // groups, *rest).swapaxes(1, 2).reshape(batch, channels, *rest)


@channels_last(
    "aten.channel_shuffle.default",
    "aten.native_channel_shuffle.default",
    inputs=("self",),
    plain=_channel_shuffle_first,
)
def channel_shuffle(self: Expr, groups: int) -> Expr:
    """The channels of the groups taken in turn."""
    *lead, channels = self.shape
    return self.reshape(*lead, groups, channels // groups).swapaxes(-1, -2).reshape(*lead, channels)
