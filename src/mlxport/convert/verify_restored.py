"""Compare what was brought back with the MLX folder: as if that had been made of it, in transformers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlxport.layouts.hugging_face.opening import RestoredConversion
from mlxport.progress import listed
from mlxport.quant.tolerances import ROWS, STORED_WEIGHT_BOUND, Tolerance
from mlxport.source import open_checkpoint
from mlxport.source.row_reader import same_bytes
from mlxport.types import Checkpoint, TensorRef

if TYPE_CHECKING:
    from pathlib import Path

    from mlxport.layouts.conversion import Conversion
    from mlxport.parity import ParityReport
    from mlxport.parity.port_report import PortParity

__all__ = ["bits_as_in", "compare_restored"]


def compare_restored(
    folder: Path, checkpoint: Checkpoint, conversion: Conversion, *, mode: str, say: Callable[[str], None]
) -> tuple[ParityReport | PortParity, Any]:
    """What the MLX folder computes against what transformers does of the restored one, and the tokenizer's round trip.

    Args:
        folder: The restored folder.
        checkpoint: The MLX folder.
        conversion: What was written.
        mode: ``auto``, ``full`` or ``layerwise``.
        say: Called with a line for each step.

    Raises:
        UnsupportedError: It cannot be compared here.
    """
    assert isinstance(conversion, RestoredConversion)
    restored = open_checkpoint(folder, trust_remote_code=checkpoint.trust_remote_code)
    tokenizer = None
    report: ParityReport | PortParity
    if conversion.made_by.verification == "logits":
        from mlxport.parity.tokenizer import check_tokenizer

        tokenizer = check_tokenizer(folder, conversion.files_of or checkpoint)
        report = _logits(checkpoint, restored, conversion, mode, say)
    else:
        from mlxport.convert.verify import verify

        report = verify(checkpoint.root, folder, trust_remote_code=checkpoint.trust_remote_code)
    if conversion.original is not None:
        said = bits_as_in(restored.tensors, conversion.original.tensors, conversion.original.name)
        report = replace(report, notes=(*report.notes, said))
    return report, tokenizer


def _logits(
    checkpoint: Checkpoint, restored: Checkpoint, made: RestoredConversion, mode: str, say: Callable[[str], None]
) -> ParityReport:
    from mlxport import parity
    from mlxport.parity.metrics import held_against
    from mlxport.parity.setup import ORIGINAL
    from mlxport.transform import invert

    report = parity.verify(
        checkpoint.root, restored, mode=mode, invert=functools.partial(invert, made.forward), on_progress=say
    )
    row = _row(made)
    named = "the MLX folder vs the restored one in transformers"
    comparisons = tuple(
        (item if item.row == "near variant" else held_against(item, named, row)) if item.name == ORIGINAL else item
        for item in report.comparisons
    )
    passed = report.passed and all(item.passed for item in comparisons)
    weights = report.weights
    if weights is not None and made.rounded:
        bound = STORED_WEIGHT_BOUND[row.row]
        if weights.relative > bound:
            said = f"{weights.worst} differs by {weights.relative:.3g}, more than rounding to {row.row}: {bound:g}"
            weights = replace(weights, passed=False, failures=(*weights.failures, said))
            passed = False
    return replace(report, comparisons=comparisons, weights=weights, passed=passed)


def _row(made: RestoredConversion) -> Tolerance:
    """What may differ: nothing but the order of additions, unless weights were rounded once more."""
    return ROWS[made.dtype if made.rounded else "same weights"]


def bits_as_in(tensors: Mapping[str, TensorRef], originals: Mapping[str, TensorRef], name: str) -> str:
    """How many of ``tensors`` are an original's bit for bit, in words, and which are not."""
    differing = [key for key, ref in originals.items() if key not in tensors or not same_bytes(tensors[key], ref)]
    extra = f"; not in {name}: {listed(more, 3)}" if (more := [key for key in tensors if key not in originals]) else ""
    if not differing:
        return f"bit for bit as in {name}: all {len(originals)} tensors{extra}"
    equal = len(originals) - len(differing)
    return f"bit for bit as in {name}: {equal} of {len(originals)} tensors, not {listed(differing, 3)}{extra}"
