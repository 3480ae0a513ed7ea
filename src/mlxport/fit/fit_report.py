"""What a plan for a machine says, and which of its rows it recommends."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from mlxport.fit.hardware import Machine
from mlxport.fit.picture_report import PicturePlan
from mlxport.progress import three_digits
from mlxport.types import CalibrationPlan, ModelPart

__all__ = ["HEADROOM", "FitReport", "FitRow", "rate_in_words", "recommended"]

# Tokens a second at the least that feel immediate: a person reads five to ten.
COMFORTABLE = 20.0
# Below four bits, scales included, models lose much of what they know.
_GOOD_BITS = 4.2
# What published runs took beyond what is planned, and what else draws on the screen: a fit that leaves less is tight.
HEADROOM = 300_000_000
# Speeds this close to the fastest are as good.
_AS_FAST = 0.9


@dataclass(frozen=True)
class FitRow:
    """One way to convert the model.

    Attributes:
        name: ``4 bits``, ``mxfp4``, ``bfloat16`` …
        quantize: The value of ``convert --quantize``, None for none.
        bits_per_weight: Stored bits divided by parameters.
        disk_bytes: Bytes of all tensors, on disk and in memory.
        cache_bytes: Key-value cache (and other state) once the context is full.
        workspace_bytes: What a step holds besides weights and cache.
        spare_bytes: What is left of the GPU's memory; negative is missing.
        longest_context: Most tokens that fit, 0 where none do.
        tokens_per_second: Least and most of the rate of generating at this context, None for an unknown chip.
        problem: Why this setting cannot apply to this model, empty where it can.
    """

    name: str
    quantize: str | None
    bits_per_weight: float = 0.0
    disk_bytes: int = 0
    cache_bytes: int = 0
    workspace_bytes: int = 0
    spare_bytes: int = 0
    longest_context: int = 0
    tokens_per_second: tuple[float, float] | None = None
    problem: str = ""

    @property
    def memory_bytes(self) -> int:
        """Weights, cache and workspace: the peak that MLX reports."""
        return self.disk_bytes + self.cache_bytes + self.workspace_bytes

    @property
    def keeps_four_bits(self) -> bool:
        """Whether it stores four bits a weight or more, scales apart."""
        return not self.problem and self.bits_per_weight >= _GOOD_BITS

    @property
    def fits(self) -> bool:
        """Whether the GPU's memory is enough."""
        return not self.problem and self.spare_bytes >= 0

    @property
    def tight(self) -> bool:
        """Whether it fits with less to spare than a plan may be wrong by."""
        return self.fits and self.spare_bytes < HEADROOM

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {**asdict(self), "memory_bytes": self.memory_bytes, "fits": self.fits, "tight": self.tight}


@dataclass(frozen=True)
class FitReport:
    """What of a model fits a machine.

    Attributes:
        source: The model, as it was named.
        machine: The machine.
        context: Tokens of prompt and answer together.
        context_limit: What the model was made for, None where its config does not say.
        kv_bits: Bits of the cache, None where it is not quantized.
        dtype: What ``convert --dtype`` has to be for these rows, empty where it need not be given.
        rows: Every setting, the recommended one first.
        recommended: Name of the recommended row, empty where nothing fits.
        notes: Remarks.
        larger_machines: Where nothing fits: the smallest machines of the table that ``larger_setting`` fits.
        larger_setting: The smallest setting of four bits or more.
        shorter_context: Where nothing fits: the longest context that does, with ``shorter_setting``.
        shorter_setting: Empty where no context fits.
        calibration: What ``convert -q 4 --calibrate default`` takes here; None where nothing is to be quantized.
        left_out: Parts of the model that the output would not hold; ``convert`` asks for ``--text-only`` then.
        pictures: What pictures add, None where the plan is of text alone.
    """

    source: str
    machine: Machine
    context: int
    context_limit: int | None
    kv_bits: int | None
    dtype: str
    rows: tuple[FitRow, ...]
    recommended: str = ""
    notes: tuple[str, ...] = ()
    larger_machines: tuple[str, ...] = ()
    larger_setting: str = ""
    shorter_context: int = 0
    shorter_setting: str = ""
    calibration: CalibrationPlan | None = None
    left_out: tuple[ModelPart, ...] = ()
    pictures: PicturePlan | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values only, for ``--json``."""
        seen = None if self.pictures is None else self.pictures.to_json()
        plain = asdict(replace(self, pictures=None))
        return {**plain, "rows": [row.to_json() for row in self.rows], "pictures": seen}


def rate_in_words(tokens_per_second: tuple[float, float] | None) -> str:
    """Least and most tokens a second, for a person."""
    if tokens_per_second is None:
        return "unknown"
    low, high = tokens_per_second
    # then it is no longer the memory's bandwidth that bounds it
    if low >= 1000:
        return "over 1,000"
    return f"{three_digits(low)}–{three_digits(high)}"


def recommended(report: FitReport) -> FitReport:
    """``report`` with the recommended row first and the others by bits a weight.

    That is the one with the most bits that fits and is comfortably fast; else, of those that fit and keep four bits,
    the one with the most bits that is nearly as fast as the fastest; else, where only less fits, that with the most
    bits.
    """
    rows = sorted(report.rows, key=lambda row: (bool(row.problem), -row.bits_per_weight))
    fitting = [row for row in rows if row.fits]
    good = [row for row in fitting if row.keeps_four_bits]
    if not fitting:
        return replace(report, rows=tuple(rows), recommended="")
    fastest = max((_least_speed(row) for row in good), default=0.0)
    wanted = min(COMFORTABLE, _AS_FAST * fastest)
    best = next((row for row in good if _least_speed(row) >= wanted), fitting[0])
    return replace(report, rows=(best, *(row for row in rows if row is not best)), recommended=best.name)


def _least_speed(row: FitRow) -> float:
    return row.tokens_per_second[0] if row.tokens_per_second else 0.0
