"""How ggml stores numbers: one entry a type, with how its blocks are read.

Blocks are those of https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h; each function here takes blocks as
uint8 [blocks, bytes] and gives float32 [blocks, elements], computed as ggml's own ``dequantize_row_*`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["KINDS", "NAMES", "BlockCodes", "Kind"]

Blocks = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]
_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class BlockCodes:
    """Blocks as MLX's affine groups: a weight is its code times the scale plus the bias.

    Attributes:
        bits: Of a code.
        codes: uint8 [blocks, elements].
        scales: float16 [blocks].
        biases: float16 [blocks].
    """

    bits: int
    codes: Blocks
    scales: npt.NDArray[np.float16]
    biases: npt.NDArray[np.float16]


@dataclass(frozen=True)
class Kind:
    """A type of ggml.

    Attributes:
        name: As ggml calls it.
        elements: In a block.
        nbytes: Of a block.
        dtype: safetensors dtype of plain numbers, empty for blocks.
        values: From blocks to numbers; None for plain ones.
        codes: From blocks to MLX's groups of 32, where those hold the same numbers; else None.
        bits: Of these codes.
    """

    name: str
    elements: int
    nbytes: int
    dtype: str = ""
    values: Callable[[Blocks], Values] | None = None
    codes: Callable[[Blocks], BlockCodes] | None = None
    bits: int = 0


def _half(blocks: Blocks, start: int) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16)


def _wide(blocks: Blocks, start: int) -> Values:
    """A float16 of each block, as float32 [blocks, 1]."""
    return _half(blocks, start).astype(np.float32)


def _nibbles(packed: Blocks) -> _Array:
    """The low halves of a block's bytes, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(blocks: Blocks, start: int) -> _Array:
    """32 bits of each block, one an element."""
    return np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")


def _symmetric(bits: int, read: Callable[[Blocks], _Array]) -> Callable[[Blocks], BlockCodes]:
    """Codes around the middle: ``d · (code − 2^(bits−1))``; the bias is d times a power of two, so exact."""

    def codes(blocks: Blocks) -> BlockCodes:
        scales = _half(blocks, 0)[:, 0]
        with np.errstate(over="ignore"):  # what becomes infinite is counted by the writer
            return BlockCodes(bits, read(blocks), scales, scales * np.float16(-(1 << (bits - 1))))

    return codes


def _shifted(bits: int, read: Callable[[Blocks], _Array]) -> Callable[[Blocks], BlockCodes]:
    """Codes from a minimum on: ``d · code + m``."""
    return lambda blocks: BlockCodes(bits, read(blocks), _half(blocks, 0)[:, 0], _half(blocks, 2)[:, 0])


def _of_codes(codes: Callable[[Blocks], BlockCodes]) -> Callable[[Blocks], Values]:
    def values(blocks: Blocks) -> Values:
        found = codes(blocks)
        scales, biases = (part.astype(np.float32)[:, None] for part in (found.scales, found.biases))
        return np.asarray(found.codes * scales + biases, np.float32)

    return values


_CODES: Mapping[str, Callable[[Blocks], BlockCodes]] = {
    "Q4_0": _symmetric(4, lambda blocks: _nibbles(blocks[:, 2:18])),
    "Q4_1": _shifted(4, lambda blocks: _nibbles(blocks[:, 4:20])),
    "Q5_0": _symmetric(5, lambda blocks: _nibbles(blocks[:, 6:22]) | _fifth_bits(blocks, 2) << 4),
    "Q5_1": _shifted(5, lambda blocks: _nibbles(blocks[:, 8:24]) | _fifth_bits(blocks, 4) << 4),
    "Q8_0": _symmetric(8, lambda blocks: blocks[:, 2:34] ^ 128),  # signed bytes, 128 more
}


def _fields(packed: Blocks, shifts: tuple[int, ...], width: int, mask: int) -> _Array:
    """Fields of runs of ``width`` bytes, all of the first shift before those of the next."""
    runs: _Array = packed.reshape(len(packed), -1, 1, width)
    return ((runs >> np.array(shifts, np.uint8)[:, None]) & mask).reshape(len(packed), -1, width)


def _scales_and_minima(packed: Blocks) -> tuple[Values, Values]:
    """Eight scales and eight minima of six bits in twelve bytes (``get_scale_min_k4``)."""
    low, high, last = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (last & 15) | (low >> 6) << 4], axis=1)
    minima = np.concatenate([high & 63, last >> 4 | (high >> 6) << 4], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _flat(values: _Array) -> Values:
    return np.asarray(values, np.float32).reshape(len(values), -1)


def _q2_k(blocks: Blocks) -> Values:
    scales, codes = blocks[:, :16], _fields(blocks[:, 16:80], (0, 2, 4, 6), 32, 3).reshape(len(blocks), 16, 16)
    steps = _wide(blocks, 80) * (scales & 15)
    minima = _wide(blocks, 82) * (scales >> 4)
    return _flat(steps[..., None] * codes - minima[..., None])


def _q3_k(blocks: Blocks) -> Values:
    codes = _fields(blocks[:, 32:96], (0, 2, 4, 6), 32, 3)
    high = _fields(blocks[:, :32], tuple(range(8)), 32, 1)
    packed = blocks[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    top = (packed[:, None, 8:] >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3).reshape(len(blocks), 16)
    scales = (low | top << 4).astype(np.float32) - 32
    signed = codes.astype(np.float32) - 4 * (1 - high.astype(np.float32))
    steps = _wide(blocks, 108) * scales
    return _flat(steps[..., None] * signed.reshape(len(blocks), 16, 16))


def _q4_k(blocks: Blocks) -> Values:
    return _k_groups(blocks, _fields(blocks[:, 16:144], (0, 4), 32, 15))


def _q5_k(blocks: Blocks) -> Values:
    high = _fields(blocks[:, 16:48], tuple(range(8)), 32, 1)
    return _k_groups(blocks, _fields(blocks[:, 48:176], (0, 4), 32, 15) | high << 4)


def _k_groups(blocks: Blocks, codes: _Array) -> Values:
    """Eight groups of 32 codes with a scale and a minimum each."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    steps, offsets = _wide(blocks, 0) * scales, _wide(blocks, 2) * minima
    return _flat(steps[..., None] * codes - offsets[..., None])


def _q6_k(blocks: Blocks) -> Values:
    low = _fields(blocks[:, :128], (0, 4), 64, 15).reshape(len(blocks), 8, 32)
    high = _fields(blocks[:, 128:192], (0, 2, 4, 6), 32, 3)
    signed = (low | high << 4).astype(np.float32) - 32
    steps = _wide(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return _flat(steps[..., None] * signed.reshape(len(blocks), 16, 16))


def _grouped(name: str, nbytes: int, bits: int) -> Kind:
    return Kind(name, 32, nbytes, values=_of_codes(_CODES[name]), codes=_CODES[name], bits=bits)


KINDS: Mapping[int, Kind] = {
    0: Kind("F32", 1, 4, "F32"),
    1: Kind("F16", 1, 2, "F16"),
    2: _grouped("Q4_0", 18, 4),
    3: _grouped("Q4_1", 20, 4),
    6: _grouped("Q5_0", 22, 5),
    7: _grouped("Q5_1", 24, 5),
    8: _grouped("Q8_0", 34, 8),
    10: Kind("Q2_K", 256, 84, values=_q2_k),
    11: Kind("Q3_K", 256, 110, values=_q3_k),
    12: Kind("Q4_K", 256, 144, values=_q4_k),
    13: Kind("Q5_K", 256, 176, values=_q5_k),
    14: Kind("Q6_K", 256, 210, values=_q6_k),
    28: Kind("F64", 1, 8, "F64"),
    30: Kind("BF16", 1, 2, "BF16"),
}
"""Number of a type to how it is read (``enum ggml_type`` in ggml.h)."""

_OTHERS: Mapping[int, str] = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 29: "IQ1_M", 31: "Q4_0_4_4",
    32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
NAMES: Mapping[int, str] = {**{number: kind.name for number, kind in KINDS.items()}, **_OTHERS}
"""What ggml calls its types, those that are not read included."""
