"""The one table of what counts as equal, by dtype and bits: of logits, of stored tensors, of a port's outputs.

Where both sides compute in float32, a row says what the stored weights may cost, not what half-precision arithmetic
costs; a port is held against its original in its own dtype. ``required`` bounds fail a verification, ``expected`` ones
are reported as warnings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "EQUAL",
    "OVERRIDES",
    "PORTED",
    "PORTED_COSINE",
    "ROWS",
    "ROW_FACTOR",
    "SPEECH",
    "STORED_WEIGHT_BOUND",
    "Ported",
    "Tolerance",
    "diverging",
    "level_name",
    "lossless",
    "row_for",
]

# A bound on a figure of ``Comparison``: figures in this set must be at least it, all others at most.
AT_LEAST = frozenset({"cosine_min", "cosine_mean", "top1"})


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the figures of a comparison, and why they are so.

    Attributes:
        row: The row's name.
        reason: Why its bounds are so.
        required: Figure to bound; what is beyond fails.
        expected: Figure to bound; what is beyond is a warning.
        level: Of the quantizations that it is for, as ``quant.level`` has it; None for rows of unquantized weights.
    """

    row: str
    reason: str
    required: Mapping[str, float]
    expected: Mapping[str, float] = field(default_factory=dict)
    level: int | None = None


def _row(
    row: str, reason: str, required: Mapping[str, float], level: int | None = None, **expected: float
) -> Tolerance:
    return Tolerance(row, reason, required, expected, level)


# Why KL and the cosine together from 4 bits up: a model with random or small weights has nearly uniform outputs, so
# that its KL is small even if it computes garbage, while the cosine of its centred logits is then about 0; a
# sharp model shows damage in KL that a mean cosine hides. Top-1 means nothing on a random model: expected only.
ROWS: Mapping[str, Tolerance] = {
    row.row: row
    for row in (
        _row(
            "same weights",
            "equal weights, float32 arithmetic on both sides: only the order of additions differs (1e-7 to 1e-5 seen)",
            {"relative": 1e-3, "cosine_min": 0.9999, "kl_mean": 1e-4, "top1": 0.99},
            relative=1e-4,
        ),
        _row(
            "near variant",
            "as above, for architectures of which mlx-lm computes one function nearly as the original does (gelu by "
            "tanh, a fixed epsilon, yarn's range in whole numbers), which the notes name",
            {"relative": 5e-2, "cosine_min": 0.999, "kl_mean": 1e-3, "top1": 0.95},
            relative=1e-2,
        ),
        _row(
            "float16",
            "weights rounded to 11 significant bits: relative error 2e-4 each, grown by depth",
            {"relative": 0.1, "cosine_mean": 0.995, "kl_mean": 1e-2},
            relative=2e-2,
            top1=0.97,
        ),
        _row(
            "bfloat16",
            "weights rounded to 8 significant bits: relative error 1.7e-3 each, grown by depth; a router near a tie "
            "may choose another expert (0.05 seen)",
            {"relative": 0.3, "cosine_mean": 0.98, "kl_mean": 5e-2},
            relative=0.1,
            top1=0.9,
        ),
        _row(
            "8 bits",
            "affine 8 bits: weight error about 0.6%",
            {"cosine_mean": 0.95, "kl_mean": 0.05},
            level=8,
            top1=0.9,
            cosine_mean=0.98,
        ),
        _row(
            "mxfp8",
            "e4m3 elements: weight error about 2.7%, between 6 and 5 bits",
            {"cosine_mean": 0.8, "kl_mean": 0.15},
            level=7,
            top1=0.85,
            cosine_mean=0.95,
        ),
        _row(
            "6 bits",
            "affine 6 bits: weight error about 2.5%",
            {"cosine_mean": 0.8, "kl_mean": 0.15},
            level=6,
            top1=0.85,
            cosine_mean=0.95,
        ),
        _row(
            "5 bits",
            "affine 5 bits: weight error about 5%",
            {"cosine_mean": 0.6, "kl_mean": 0.3},
            level=5,
            top1=0.8,
            cosine_mean=0.9,
        ),
        _row(
            "4 bits",
            "4 bits: weight error about 10%; 16 layers of random weights keep a cosine of 0.79, garbage has 0",
            {"cosine_mean": 0.4, "kl_mean": 1.0},
            level=4,
            top1=0.7,
            cosine_mean=0.8,
            kl_mean=0.5,
        ),
        _row(
            "3 bits",
            "affine 3 bits: weight error about 22%; small models are damaged by it, so quality only warns, and what "
            "must hold are the same weights in torch and each tensor against its original",
            {"cosine_mean": 0.1},
            level=3,
            cosine_mean=0.7,
            kl_mean=1.5,
        ),
        _row(
            "2 bits",
            "affine 2 bits: weight error about 55%; most models are damaged by it, so quality only warns, and what "
            "must hold are the same weights in torch and each tensor against its original",
            {},
            level=2,
            cosine_mean=0.4,
            kl_mean=3.0,
        ),
    )
}

# The rows for outputs whose weights are the reference's.
EQUAL = ("same weights", "near variant")

# model_type -> bounds that replace those of any row, with the reason. Empty: every architecture tried holds the table.
OVERRIDES: Mapping[str, Tolerance] = {}

# Relative RMS error of one stored tensor against the checkpoint's. Uniform groups of Gaussian weights give about
# 0.006, 0.025, 0.05, 0.1, 0.22 and 0.55 from 8 to 2 bits; heavy tails and calibrated scales cost up to twice
# that. An unrelated tensor of the same kind gives 1.4, a wrong nibble order about 1.3.
STORED_WEIGHT_BOUND: Mapping[str, float] = {
    "lossless": 1e-6,
    "trained": 0.5,  # after it was converted, towards what the original predicts
    "float16": 2e-3,
    "bfloat16": 8e-3,
    "8 bits": 0.03,
    "mxfp8": 0.1,
    "6 bits": 0.1,
    "5 bits": 0.2,
    "4 bits": 0.35,
    "3 bits": 0.55,
    "2 bits": 0.9,
}

# A row is a smaller sample than its tensor and may be harder to quantize than the rest; an unrelated row gives 1.4.
ROW_FACTOR = 1.5


@dataclass(frozen=True)
class Ported:
    """Bounds on what a port computes in one dtype, its original in float32.

    Attributes:
        largest: Largest difference of an output over the reference's largest value.
        rms: RMS of the difference over RMS of the reference.
        module: RMS, of one module whose input agrees: beyond, the module is named.
    """

    largest: float
    rms: float
    module: float


SPEECH = "float32 speech"
PORTED: Mapping[str, Ported] = {
    "float32": Ported(1e-4, 1e-4, 2e-4),
    "float16": Ported(5e-2, 1e-2, 2e-2),
    "bfloat16": Ported(2e-1, 5e-2, 1e-1),
    # Silent frames are ill-conditioned: Whisper tiny amplifies the rounding of float32 to 1.5e-4 of the scale there.
    SPEECH: Ported(1e-3, 1e-4, 2e-4),
}

# Cosine with the original's that a quantized port's output should have at least, by bits: less is a warning, since
# what is computed of differences, as similarities near zero, is noise in any coarse copy.
PORTED_COSINE: Mapping[int, float] = {8: 0.98, 6: 0.95, 5: 0.9, 4: 0.8, 3: 0.5, 2: 0.1}


def diverging(*, tight: bool) -> float:
    """Relative error beyond which a module of a converted model is named as the one that diverges.

    Against equal weights only the order of additions differs, as in a port in float32; against other weights
    (quantized, or no inverse layout) each layer adds the cost of its rounding.
    """
    return PORTED["float32"].module if tight else 0.4


_EXACT_IN: Mapping[str, frozenset[str]] = {
    "F64": frozenset({"F64", "F32", "F16", "BF16"}),
    "F32": frozenset({"F32", "F16", "BF16"}),
    "F16": frozenset({"F16"}),
    "BF16": frozenset({"BF16"}),
}


def lossless(source: str, stored: str) -> bool:
    """Whether every value of the safetensors dtype ``source`` is a value of ``stored``."""
    return source == stored or source in _EXACT_IN.get(stored, ())


def level_name(faith: int) -> str:
    """The row of a level: that of the most faithful quantization that is not more so."""
    levels = {row.level: row.row for row in ROWS.values() if row.level is not None}
    return levels[max((known for known in levels if known <= faith), default=min(levels))]


def row_for(sources: frozenset[str], stored: frozenset[str], lowest: int | None, model_type: str = "") -> Tolerance:
    """The row for an output against its original.

    Args:
        sources: Floating safetensors dtypes of the checkpoint.
        stored: Floating safetensors dtypes of the output's unquantized tensors.
        lowest: Lowest level of a quantized module, None when nothing is quantized.
        model_type: Architecture, for the overrides.
    """
    if model_type in OVERRIDES:
        return OVERRIDES[model_type]
    if lowest is not None:
        return ROWS[level_name(lowest)]
    lossy = [s for s in stored if not all(lossless(source, s) for source in sources)]
    # Several dtypes on both sides (float32 norms beside bfloat16 weights) are usually kept as they are.
    if not lossy or sources == stored:
        return ROWS["same weights"]
    return ROWS["bfloat16" if "BF16" in lossy else "float16"]
