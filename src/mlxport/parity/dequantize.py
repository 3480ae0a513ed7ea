"""MLX's packed weights unpacked in torch: written from the format, without MLX, so that a wrong packing shows.

Formats: https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html; the elements and scales
of the mx and nv modes are those of the OCP Microscaling specification 1.0 and of NVFP4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mlxport.errors import UnsupportedError

__all__ = ["FORMATS", "dequantize", "unpack"]

# e2m1: sign, two exponent bits, one mantissa bit.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
# bits -> the fewest values that fill whole bytes, these bytes, and an integer that holds them.
_GROUPS = {
    2: (4, 1, torch.uint8),
    3: (8, 3, torch.int32),
    4: (2, 1, torch.uint8),
    5: (8, 5, torch.int64),
    6: (4, 3, torch.int32),
}
_NVFP4_RANGE = 448.0 * 6.0  # largest e4m3 scale times largest e2m1 element: the unit of a global scale


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned integers of ``bits`` bits from rows of uint32 words: one little-endian bit stream a row.

    Args:
        packed: Words, shape [..., words], any 32-bit integer dtype.
        bits: 2, 3, 4, 5, 6 or 8.

    Returns:
        uint8, shape [..., 32 * words / bits].
    """
    stream = packed.contiguous().view(torch.uint8)
    if bits == 8:
        return stream
    count, size, kind = _GROUPS[bits]
    groups = stream.unflatten(-1, (-1, size))
    word = groups[..., 0].to(kind)
    for byte in range(1, size):
        word |= groups[..., byte].to(kind) << (8 * byte)
    values = torch.empty((*word.shape, count), dtype=torch.uint8)
    for place in range(count):
        values[..., place] = (word >> (bits * place)) & ((1 << bits) - 1)
    return values.flatten(-2)


def _e8m0(scales: torch.Tensor) -> torch.Tensor:
    return torch.exp2(scales.to(torch.float32) - 127.0)


def _e4m3(codes: torch.Tensor) -> torch.Tensor:
    return codes.view(torch.float8_e4m3fn).to(torch.float32)


def _e2m1(codes: torch.Tensor) -> torch.Tensor:
    return torch.tensor(_E2M1)[codes.to(torch.int32)]


def _integer(codes: torch.Tensor) -> torch.Tensor:
    return codes.to(torch.float32)


@dataclass(frozen=True)
class Format:
    """How a mode is read.

    Attributes:
        element: Unsigned codes to float32.
        scale: Stored scales to float32.
    """

    element: Callable[[torch.Tensor], torch.Tensor]
    scale: Callable[[torch.Tensor], torch.Tensor]


# One for each mode of ``quant.MODES``, written without it: what is stored is read as the formats' own papers say.
FORMATS: Mapping[str, Format] = {
    "affine": Format(_integer, lambda scales: scales.to(torch.float32)),
    "mxfp4": Format(_e2m1, _e8m0),
    "nvfp4": Format(_e2m1, _e4m3),
    "mxfp8": Format(_e4m3, _e8m0),
}


def dequantize(
    packed: torch.Tensor,
    scales: torch.Tensor,
    biases: torch.Tensor | None,
    *,
    mode: str,
    bits: int,
    group_size: int,
    global_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Float32 weights of a packed triple, shape [..., 32 * words / bits].

    Args:
        packed: uint32 words, [..., words].
        scales: One per group: floating (affine), e8m0 codes (mxfp4, mxfp8) or e4m3 codes (nvfp4), as uint8.
        biases: One per group where the mode has them, else None.
        mode: A key of ``FORMATS``.
        bits: Bits of an element.
        group_size: Elements that share a scale.
        global_scale: nvfp4 only: the largest absolute weight, a scalar or one per leading index.

    Raises:
        UnsupportedError: The mode is unknown.
    """
    if (known := FORMATS.get(mode)) is None:
        raise UnsupportedError(f"quantization mode {mode!r} cannot be checked", hint="update mlxport")
    factors = known.scale(scales)
    if global_scale is not None:
        unit = global_scale.to(torch.float32) / _NVFP4_RANGE
        factors = factors * unit.reshape(*unit.shape, *(1,) * (factors.ndim - unit.ndim))
    values = known.element(unpack(packed, bits))
    grouped: Any = values.unflatten(-1, (-1, group_size))
    grouped.mul_(factors[..., None])
    if biases is not None:
        grouped.add_(biases.to(torch.float32)[..., None])
    return values
