"""What ``convert`` hands back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.layouts.left_out import parts_in_words
from mlxport.types import Plan

if TYPE_CHECKING:
    from mlxport.allocate import AllocationReport
    from mlxport.distill import DistillReport
    from mlxport.output.blocks import Findings
    from mlxport.parity import ParityReport
    from mlxport.parity.overflow import Activations
    from mlxport.parity.port_report import PortParity
    from mlxport.quality.quality_report import QualityReport

MARGIN_BYTES = 16 << 20  # configs, card, record, headers


@dataclass(frozen=True)
class ConvertReport:
    """What ``convert`` did, or with ``dry_run`` would do.

    Attributes:
        destination: The output folder.
        plan: Shards, bytes, quantization, memory.
        notes: Changes of the config and other remarks.
        warnings: What the output lacks, or may fail at.
        free_bytes: Space on the destination's disk before the conversion.
        resumed: Shards that an earlier, interrupted run had finished.
        findings: Values that are not finite in the source, or not after the cast.
        parity: The verification, None if there was none.
        tokenizer: The tokenizer's round trip, None if it was not tested.
        not_verified: Why there was no verification, empty if there was one.
        activations: The largest ones, where float16 might not hold them; None elsewhere.
        distilled: The distillation, None if there was none.
        dry_run: Whether nothing was written.
        allocation: What was chosen for each module, where a limit was asked for.
        quality: The quality report, None where none was asked for.
        layout: Name of the output's layout.
    """

    destination: Path
    plan: Plan
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    free_bytes: int = 0
    resumed: tuple[str, ...] = ()
    findings: Findings | None = None
    parity: ParityReport | PortParity | None = None
    tokenizer: Any = None
    not_verified: str = ""
    activations: Activations | None = None
    distilled: DistillReport | None = None
    dry_run: bool = False
    allocation: AllocationReport | None = None
    quality: QualityReport | None = None
    layout: str = ""

    @property
    def left_out(self) -> str:
        """The parts of the original that are not in the output, in words; empty where it is the whole model."""
        return parts_in_words(self.plan.left_out)

    def to_json(self) -> dict[str, Any]:
        """Plain values only, for ``--json``."""
        plan = self.plan
        return {
            "destination": str(self.destination),
            "dry_run": self.dry_run,
            "layout": self.layout,
            "plan": {
                "shards": [{"file": s.filename, "bytes": s.nbytes, "tensors": len(s.tensors)} for s in plan.shards],
                "bytes": plan.nbytes,
                "dtype": plan.dtype,
                "parameters": plan.parameters,
                "bits_per_weight": round(plan.bits_per_weight, 4),
                "quantized_modules": len(plan.quantized),
                "kept": dict(plan.kept),
                "dropped": list(plan.dropped),
                "left_out": [asdict(part) for part in plan.left_out],
                "peak_memory_bytes": plan.peak_bytes,
                "calibration": asdict(plan.calibration) if plan.calibration else None,
                "disk_needed_bytes": plan.nbytes + MARGIN_BYTES,
                "disk_free_bytes": self.free_bytes,
            },
            "allocation": self.allocation.to_json() if self.allocation else None,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "resumed": list(self.resumed),
            "nonfinite": dict(self.findings.nonfinite) if self.findings else {},
            "overflowed": dict(self.findings.overflowed) if self.findings else {},
            "activations": self.activations.to_json() if self.activations else None,
            "distilled": self.distilled.to_json() if self.distilled else None,
            "verified": bool(self.parity and self.parity.passed),
            "not_verified": self.not_verified,
            "parity": self.parity.to_json() if self.parity else None,
            "tokenizer": self.tokenizer.to_json() if self.tokenizer else None,
            "quality": self.quality.quality.to_json() if self.quality else None,
        }
