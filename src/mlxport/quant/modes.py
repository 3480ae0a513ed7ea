"""Quantization modes: what MLX stores, one entry a mode.

Every other list of modes, and every question about one, derives from this table. Beside its entry a mode has a
dequantizer in torch (``parity/dequantize.py``), and nothing else.

Sizes are those of ``mx.quantize`` (https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlxport.errors import QuantizationError
from mlxport.types import QuantSpec


@dataclass(frozen=True, slots=True)
class Mode:
    """A storage format of MLX.

    Attributes:
        name: ``mode`` in config.json.
        bits: Allowed bits per weight, the default first.
        groups: Allowed group sizes, the default first.
        scale_bits: Bits of a group's scale where it does not follow the weight's dtype.
        linear: Whether a weight is its code times the group's scale plus the group's bias. Scales, biases and codes of
            such modes are numbers that can be chosen: by search, by calibration, by training, by allocation of bits.
            Other modes store elements of a floating format, as MLX rounds them.
        faithful_as: How faithful it is, as the bits of a linear mode with that error; None is its own bits. The level
            decides the tolerances (``quant/tolerances.py`` has a row for each).
        packing_work: Work of packing a weight, in that of a linear mode: MLX's CPU code for the mx and nv formats
            compares each element with 16 candidates.
    """

    name: str
    bits: tuple[int, ...]
    groups: tuple[int, ...]
    scale_bits: int | None = None
    linear: bool = False
    faithful_as: int | None = None
    packing_work: int = 16

    def bits_per_weight(self, bits: int, group_size: int, weight_bits: int = 16) -> float:
        """Stored bits per weight, scales and biases included; ``weight_bits`` is the width of the model's dtype."""
        scale = self.scale_bits or weight_bits
        return bits + scale * (2 if self.linear else 1) / group_size

    def specs(self) -> tuple[QuantSpec, ...]:
        """Every setting of it, from few bits to many, and from small groups to large."""
        return tuple(QuantSpec(self.name, bits, group) for bits in sorted(self.bits) for group in sorted(self.groups))


def by_name(modes: Iterable[Mode]) -> dict[str, Mode]:
    """Modes by their names, in order.

    Raises:
        ValueError: Two have one name.
    """
    found: dict[str, Mode] = {}
    for mode in modes:
        if mode.name in found:
            raise ValueError(f"the mode {mode.name} is there twice")
        found[mode.name] = mode
    return found


# The first is MLX's own where none is named: what a number of bits alone means, and what mlx-lm's caches hold.
MODES: dict[str, Mode] = by_name(
    (
        Mode("affine", (4, 2, 3, 5, 6, 8), (64, 32, 128), linear=True, packing_work=1),
        Mode("mxfp4", (4,), (32,), scale_bits=8),
        Mode("nvfp4", (4,), (16,), scale_bits=8),
        # An e4m3 element has 8 bits and the error of six to seven.
        Mode("mxfp8", (8,), (32,), scale_bits=8, faithful_as=7),
    )
)
DEFAULT_MODE = next(iter(MODES))


def make_spec(mode: str = DEFAULT_MODE, bits: int | None = None, group_size: int | None = None) -> QuantSpec:
    """A checked setting with the mode's defaults filled in.

    Raises:
        QuantizationError: The mode is unknown, or it has no such bits or group size.
    """
    if mode not in MODES:
        raise QuantizationError(f"unknown quantization mode {mode!r}", hint=f"choose one of {', '.join(MODES)}")
    known = MODES[mode]
    bits = known.bits[0] if bits is None else bits
    group_size = known.groups[0] if group_size is None else group_size
    for what, value, allowed in (("bits", bits, known.bits), ("group size", group_size, known.groups)):
        if value not in allowed:
            choices = ", ".join(str(x) for x in sorted(allowed))
            raise QuantizationError(f"{what} {value} does not exist for {mode}", hint=f"choose from {choices}")
    return QuantSpec(mode, bits, group_size)


def is_linear(mode: str) -> bool:
    """Whether scales, biases and codes of a mode are numbers that can be chosen; False for a mode of others."""
    return mode in MODES and MODES[mode].linear


def level(mode: str, bits: int) -> int:
    """How faithful a setting is, as bits of a linear mode; that of a mode of others is told by its bits."""
    known = MODES.get(mode)
    return bits if known is None or known.faithful_as is None else known.faithful_as


def plain_bits() -> tuple[int, ...]:
    """What a number alone can be where a quantization is asked for (``-q 4``): the bits of the default mode."""
    return tuple(sorted(MODES[DEFAULT_MODE].bits))


def named_modes() -> tuple[str, ...]:
    """The modes that are asked for by their names (``-q mxfp4``)."""
    return tuple(name for name in MODES if name != DEFAULT_MODE)


def linear_modes() -> str:
    """Names of the modes whose scales, biases and codes can be chosen, for messages."""
    return " or ".join(name for name in MODES if is_linear(name))
