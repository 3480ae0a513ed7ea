"""Compare an output that was just written with its original, in the way that its layout names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.convert.recorded import fewest_bits, refuse_large, stored_weights
from mlxport.convert.verified_results import as_generated, compared_speech, no_verification, with_steps, with_task
from mlxport.errors import UnsupportedError, VerificationError
from mlxport.layouts.base import Layout
from mlxport.progress import Progress
from mlxport.types import Checkpoint

if TYPE_CHECKING:
    import mlx.core as mx

    from mlxport.layouts.conversion import Conversion
    from mlxport.parity import ParityReport
    from mlxport.parity.port_report import PortParity

    Weights = Callable[[], Mapping[str, mx.array]]

__all__ = ["Verified", "Verifying", "verify_written"]


@dataclass(frozen=True)
class Verifying:
    """An output and what it is compared with.

    Attributes:
        folder: The output.
        layout: Its layout.
        checkpoint: The original.
        conversion: What was written.
        mode: ``auto``, ``full``, ``layerwise`` or ``none``.
        trained: Modules that were trained after they had been converted.
        say: Called with a line for each step.
        task: What the model is for, None where nothing says.
    """

    folder: Path
    layout: Layout
    checkpoint: Checkpoint
    conversion: Conversion
    mode: str
    trained: frozenset[str]
    say: Callable[[str], None]
    task: str | None = None


@dataclass(frozen=True)
class Verified:
    """What a verification found: figures of the comparison and of the tokenizer, or why there are none."""

    parity: ParityReport | PortParity | None = None
    tokenizer: Any = None
    missing: str = ""


def verify_written(work: Verifying, progress: Progress) -> Verified:
    """Verify what has been written.

    Raises:
        VerificationError: It differs from the original.
        UnsupportedError: It cannot be verified, and a way to do it was asked for by name.
    """
    from mlxport import parity

    if work.mode == "none":
        return Verified(missing="not verified: --verify none")
    if reason := parity.unavailable():
        progress.message(f"warning: {reason}")
        return Verified(missing=reason)
    progress.stage("verifying against PyTorch", 0)
    try:
        return _WRITTEN[work.layout.verification](work)
    except UnsupportedError as error:
        # Asked for by name, a verification must happen; by default the output is said not to be verified.
        if work.mode != "auto":
            raise
        progress.message(f"warning: not verified: {error.message}")
        return Verified(missing=f"not verified: {error.message}")


def _written_logits(work: Verifying) -> Verified:
    from mlxport import parity
    from mlxport.parity.tokenizer import check_tokenizer

    tokenizer = check_tokenizer(work.folder, work.checkpoint)
    report = parity.verify(
        work.folder,
        work.checkpoint,
        mode=work.mode,
        invert=_inverse(work),
        trained=work.trained,
        generation=work.layout.verifies_generation,
        on_progress=work.say,
    )
    return Verified(_passed(report, work.folder, "architecture"), tokenizer)


def _inverse(work: Verifying) -> Callable[[Mapping[str, mx.array]], dict[str, mx.array]]:
    """From the output's tensors to those of what it is compared with, which are other ones of blocks kept as stored."""
    from mlxport import parity
    from mlxport.transform import invert

    program = work.conversion.program
    if program.refs.keys() == work.checkpoint.tensors.keys():
        return functools.partial(invert, program)
    return parity.own_inverse(work.checkpoint, work.conversion.dtype, work.layout.traces)


def _written_outputs(work: Verifying) -> Verified:
    conversion = as_generated(work.conversion)
    refuse_large(conversion)
    report, _ = _compared_outputs(work)
    report = with_task(report, work.folder, work.task, work.checkpoint, conversion)
    return Verified(_passed(report, work.folder, "model"))


def _compared_outputs(work: Verifying, stored: Weights | None = None) -> tuple[PortParity, Any]:
    """What the comparison of a port that was just written found, and the port; ``stored`` as of ``compare_port``."""
    from mlxport.layouts.generated.loading import load_port, unquantized_port
    from mlxport.parity.port_comparison import compare_port

    conversion = as_generated(work.conversion)
    model = load_port(work.folder)  # written by this very run, which has noted it
    report = compare_port(
        conversion,
        model,
        dtype=conversion.dtype,
        bits=fewest_bits(conversion),
        unquantized=functools.partial(unquantized_port, work.folder),
        trained=work.trained,
        stored=stored,
        on_outputs=functools.partial(conversion.keep_outputs, work.folder),
    )
    return report, model


def _written_parts(work: Verifying) -> Verified:
    from mlxport.convert.verify_parts import compare_written

    report = compare_written(work.folder, work.conversion, work.mode)
    report = with_task(report, work.folder, work.task, work.checkpoint, work.conversion)
    return Verified(_passed(report, work.folder, "model"))


def _written_sequences(work: Verifying) -> Verified:
    from mlxport.model.memory import uncached
    from mlxport.parity.tokenizer import check_tokenizer

    tokenizer = check_tokenizer(work.folder, work.checkpoint)
    stored = stored_weights(work.folder, work.conversion, work.mode)
    with uncached():
        report, model = _compared_outputs(work, stored)
        _passed(report, work.folder, "model")
        report = with_steps(report, model, as_generated(work.conversion), stored is not None)
    return Verified(_passed(report, work.folder, "model"), tokenizer)


def _written_pictures(work: Verifying) -> Verified:
    from mlxport.parity.picture_parity import compare_pictures
    from mlxport.parity.tokenizer import check_tokenizer

    tokenizer = check_tokenizer(work.folder, work.checkpoint)
    report = compare_pictures(work.folder, work.checkpoint, work.conversion.program)
    return Verified(_passed(report, work.folder, "architecture"), tokenizer)


def _passed(report: Any, folder: Path, what: str) -> Any:
    if not report.passed:
        advice = getattr(report, "hint", "") or f"please report this {what}"
        hint = f"the output is left in {folder} for inspection; {advice}"
        raise VerificationError(report.failure_message(), hint=hint)
    return report


def _written_speech(work: Verifying) -> Verified:
    made = work.conversion
    report = compared_speech(work.folder, work.task, work.checkpoint, made, made.dtype, fewest_bits(made))
    return Verified(_passed(report, work.folder, "model"))


def _written_restored(work: Verifying) -> Verified:
    from mlxport.convert.verify_restored import compare_restored

    parity, tokenizer = compare_restored(work.folder, work.checkpoint, work.conversion, mode=work.mode, say=work.say)
    return Verified(_passed(parity, work.folder, "architecture"), tokenizer)


def _not_verified(work: Verifying) -> Verified:
    raise no_verification(work.layout)


_WRITTEN: Mapping[str, Callable[[Verifying], Verified]] = {
    "logits": _written_logits,
    "outputs": _written_outputs,
    "sequences": _written_sequences,
    "parts": _written_parts,
    "pictures": _written_pictures,
    "speech": _written_speech,
    "restored": _written_restored,
    "": _not_verified,
}
