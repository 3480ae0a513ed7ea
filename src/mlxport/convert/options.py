"""What ``convert`` was asked to do, and what it hands back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.calibrate.calibration_text import Calibration
from mlxport.distill.distill_settings import DistillSettings
from mlxport.errors import UsageError
from mlxport.output.plan import DEFAULT_SHARD_SIZE, parse_size
from mlxport.quant import QuantRequest
from mlxport.run.kv import KVQuant
from mlxport.types import Plan

if TYPE_CHECKING:
    from mlxport.allocate import AllocationReport
    from mlxport.distill import DistillReport
    from mlxport.output.blocks import Findings
    from mlxport.parity import ParityReport
    from mlxport.parity.overflow import Activations
    from mlxport.parity.port_parity import PortParity
    from mlxport.quality.quality_report import QualityReport

DTYPES = ("auto", "float32", "float16", "bfloat16")
LAYOUTS = ("auto", "mlx-lm", "generated")
VERIFY = ("auto", "full", "layerwise", "none")
MARGIN_BYTES = 16 << 20  # configs, card, record, headers


@dataclass(frozen=True)
class Options:
    """What ``convert`` was asked to do.

    ``quant`` is the checked form of the quantization options; ``dynamic``, ``fold_batchnorm`` and ``mlxfn`` are those
    of ``port``, for the generated layout; ``kv`` is the key-value cache that the output is to be used with;
    ``allocation`` is what ``quant`` was chosen by, where a limit was asked for; ``report_device`` is the Mac that the
    quality report predicts for; ``calibration`` is the text to calibrate on, None without calibration; ``distill`` is
    how scales and biases are trained, None without training.
    """

    dtype: str = "auto"
    quant: QuantRequest | None = None
    max_shard_size: str | int = DEFAULT_SHARD_SIZE
    shard_by: str = "size"
    layout: str = "auto"
    verify: str = "auto"
    overwrite: bool = False
    allow_overflow: bool = False
    trust_remote_code: bool = False
    dynamic: bool | Any = True
    fold_batchnorm: bool = False
    mlxfn: bool = False
    kv: KVQuant | None = None
    allocation: AllocationReport | None = None
    report: bool = False
    report_device: str | None = None
    calibration: Calibration | None = None
    distill: DistillSettings | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("dtype", self.dtype, DTYPES),
            ("layout", self.layout, LAYOUTS),
            ("verify", self.verify, VERIFY),
            ("shard-by", self.shard_by, ("size", "layer")),
        ):
            if value not in allowed:
                raise UsageError(f"--{name} {value!r} does not exist", hint=f"choose one of {', '.join(allowed)}")
        ported = {
            "--no-dynamic": self.dynamic is not True,
            "--fold-batchnorm": self.fold_batchnorm,
            "--mlxfn": self.mlxfn,
        }
        if self.layout == "mlx-lm" and (given := [name for name, there in ported.items() if there]):
            raise UsageError(
                f"{', '.join(given)}: for the generated layout only, and this one is mlx-lm's",
                hint="add --layout generated, or leave it out",
            )
        if self.distill is not None and self.layout == "generated":
            message = "--distill: for mlx-lm's layout only; the generated one is a program of its own"
            raise UsageError(message, hint="leave it out, or add --layout mlx-lm")
        if self.layout == "generated" and self.kv is not None:
            raise UsageError(
                "--kv-bits: for mlx-lm's layout only; the generated one has no key-value cache",
                hint="leave it out, or add --layout mlx-lm",
            )
        self._check_report()
        if self.layout == "generated" and self.calibration is not None:
            raise UsageError(
                f"--calibrate {self.calibration.name}: for mlx-lm's layout only, and this one is generated",
                hint="use --quantizer search instead, or leave --layout out",
            )
        if isinstance(self.max_shard_size, float):
            raise UsageError(f"{self.max_shard_size!r} is not a size", hint="write it like 5GB, or as whole bytes")
        parse_size(self.max_shard_size)

    def _check_report(self) -> None:
        if self.report and self.layout == "generated":
            raise UsageError(
                "--report: quality is measured with mlx-lm's models, and this layout brings code of its own",
                hint="leave it out: the conversion is verified against PyTorch",
            )
        if self.report_device is not None:
            from mlxport.fit.hardware import named_machine

            if not self.report:
                raise UsageError("--report-device has no effect without --report", hint="add --report")
            named_machine(self.report_device)

    def recorded(self) -> dict[str, Any]:
        """The options that decide the bytes of the output, and how to capture the original again."""
        quant = asdict(self.quant) if self.quant else None
        ported = {"dynamic": self.dynamic is True, "fold_batchnorm": self.fold_batchnorm}
        return {
            "dtype": self.dtype,
            "quantize": quant,
            "max_shard_size": self.max_shard_size,
            "shard_by": self.shard_by,
            "layout": self.layout,
            **({"distill": asdict(self.distill)} if self.distill is not None else {}),
            **(ported if self.layout == "generated" else {}),
            **({"calibrate": self.calibration.recorded()} if self.calibration else {}),
        }


@dataclass(frozen=True)
class ConvertReport:
    """What ``convert`` did, or with ``dry_run`` would do.

    Attributes:
        destination: The output folder.
        plan: Shards, bytes, quantization, memory.
        notes: Changes of the config and other remarks.
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
    """

    destination: Path
    plan: Plan
    notes: tuple[str, ...] = ()
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

    def to_json(self) -> dict[str, Any]:
        """Plain values only, for ``--json``."""
        plan = self.plan
        return {
            "destination": str(self.destination),
            "dry_run": self.dry_run,
            "plan": {
                "shards": [{"file": s.filename, "bytes": s.nbytes, "tensors": len(s.tensors)} for s in plan.shards],
                "bytes": plan.nbytes,
                "dtype": plan.dtype,
                "parameters": plan.parameters,
                "bits_per_weight": round(plan.bits_per_weight, 4),
                "quantized_modules": len(plan.quantized),
                "kept": dict(plan.kept),
                "dropped": list(plan.dropped),
                "peak_memory_bytes": plan.peak_bytes,
                "calibration": asdict(plan.calibration) if plan.calibration else None,
                "disk_needed_bytes": plan.nbytes + MARGIN_BYTES,
                "disk_free_bytes": self.free_bytes,
            },
            "allocation": self.allocation.to_json() if self.allocation else None,
            "notes": list(self.notes),
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
