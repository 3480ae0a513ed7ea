"""Quantization modes: what MLX stores, one entry a mode; every other list of modes derives from this one.

Sizes are those of ``mx.quantize`` (https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html).
"""

from __future__ import annotations

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
        has_bias: Whether a group has a bias as large as its scale.
    """

    name: str
    bits: tuple[int, ...]
    groups: tuple[int, ...]
    scale_bits: int | None
    has_bias: bool

    def bits_per_weight(self, bits: int, group_size: int, weight_bits: int = 16) -> float:
        """Stored bits per weight, scales and biases included; ``weight_bits`` is the width of the model's dtype."""
        scale = self.scale_bits or weight_bits
        return bits + scale * (2 if self.has_bias else 1) / group_size


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("affine", (4, 2, 3, 5, 6, 8), (64, 32, 128), None, True),
        Mode("mxfp4", (4,), (32,), 8, False),
        Mode("nvfp4", (4,), (16,), 8, False),
        Mode("mxfp8", (8,), (32,), 8, False),
    )
}


def make_spec(mode: str = "affine", bits: int | None = None, group_size: int | None = None) -> QuantSpec:
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
