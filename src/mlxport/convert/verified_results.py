"""What all verifications do, of an output just written or of a folder: its task, texts on caches, speech."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.errors import UnsupportedError
from mlxport.layouts.base import Layout
from mlxport.types import Checkpoint

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion
    from mlxport.layouts.generated.weights_trace import GeneratedConversion
    from mlxport.parity.port_report import PortParity

__all__ = ["as_generated", "compared_speech", "no_verification", "with_steps", "with_task"]


def with_task(
    report: PortParity, folder: Path, task: str | None, checkpoint: Checkpoint, conversion: Conversion,
    trust_remote_code: bool = False,
) -> PortParity:  # fmt: skip
    """A report with what the results of the task that the model is for have shown."""
    from mlxport.parity.task_results import compare_task

    if task is None or not report.passed:
        return report
    exact = report.dtype == "float32" and report.bits is None
    return replace(report, task=compare_task(
        task, folder, checkpoint, parameters=conversion.parameters, exact=exact, trust_remote_code=trust_remote_code,
    ))  # fmt: skip


def with_steps(report: PortParity, model: Any, conversion: GeneratedConversion, short: bool) -> PortParity:
    """A report with what a text that is written on caches has shown; a ``short`` one where each token takes long."""
    from mlxport.model_config import ModelConfig
    from mlxport.parity.port_comparison import original_logits
    from mlxport.parity.sequence_steps import check_steps

    if not report.passed:
        return report
    equal = report.dtype == "float32" and report.bits is None
    original = original_logits(conversion) if equal else None
    context = ModelConfig(conversion.config).context_length
    found = check_steps(model, conversion.example, report.dtype, original, context, short=short)
    return replace(report, generation=found)


def compared_speech(
    folder: Path, task: str | None, checkpoint: Checkpoint, made: Conversion, dtype: str, bits: Any
) -> PortParity:
    """What the comparison of a Whisper for mlx-whisper found, and of what it writes."""
    from mlxport.parity.speech_parity import compare_speech

    report = compare_speech(folder, checkpoint, dtype=dtype, bits=bits, parameters=made.parameters)
    return with_task(report, folder, task, checkpoint, made)


def as_generated(conversion: Conversion) -> GeneratedConversion:
    """A conversion that brings its own code."""
    from mlxport.layouts.generated.weights_trace import GeneratedConversion

    assert isinstance(conversion, GeneratedConversion), "outputs are compared of what brings its own code and example"
    return conversion


def no_verification(layout: Layout) -> UnsupportedError:
    """What is said of a layout whose outputs are compared with nothing."""
    return UnsupportedError(
        f"there is no comparison with the original for the layout {layout.name}", hint="use --verify none"
    )
