"""Verification: the written output against the original in torch. Nothing heavy is imported until it runs.

Imports: errors, types, model_config, source, quant, transform, layouts, graph, run, model.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.errors import UnsupportedError, UsageError
from mlxport.parity.parity_report import Comparison, Divergence, LayerError, ParityReport, WeightCheck
from mlxport.types import Checkpoint

if TYPE_CHECKING:
    import mlx.core as mx

    from mlxport.parity.inverse import own_inverse
    from mlxport.parity.likelihood import perplexity
    from mlxport.parity.side_files import carried_problems
    from mlxport.parity.tokenizer import check_tokenizer

__all__ = [
    "Comparison",
    "Divergence",
    "LayerError",
    "ParityReport",
    "WeightCheck",
    "carried_problems",
    "check_tokenizer",
    "own_inverse",
    "perplexity",
    "unavailable",
    "verify",
]

_LAZY = {
    "carried_problems": "mlxport.parity.side_files",
    "check_tokenizer": "mlxport.parity.tokenizer",
    "own_inverse": "mlxport.parity.inverse",
    "perplexity": "mlxport.parity.likelihood",
}
MODES = ("auto", "full", "layerwise")


def __getattr__(name: str) -> Any:
    """Functions whose modules import more than the standard library."""
    if name not in _LAZY:
        raise AttributeError(name)
    return getattr(importlib.import_module(_LAZY[name]), name)


def unavailable() -> str:
    """Why nothing can be verified on this installation; empty when it can."""
    missing = [name for name in ("torch", "accelerate") if importlib.util.find_spec(name) is None]
    return f"not verified: {missing[0]} is not installed, pip install 'mlxport[torch]'" if missing else ""


def verify(
    output: Path,
    checkpoint: Checkpoint,
    *,
    mode: str = "auto",
    invert: Callable[[Mapping[str, mx.array]], dict[str, mx.array]] | None = None,
    memory_limit: int | None = None,
    tokens: int | None = None,
    trained: frozenset[str] = frozenset(),
    generation: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> ParityReport:
    """Compare a converted folder with its original: logits on text, and every stored tensor.

    Args:
        output: The folder that mlx-lm loads.
        checkpoint: The original.
        mode: ``full`` (models in memory), ``layerwise`` (module by module from disk), or ``auto``: full if it is small.
        invert: mlx-lm's tensors (dequantized) to the checkpoint's, lazily; default: mlx-lm's own layout, traced.
        memory_limit: Bytes that ``full`` may take; default half of what is available.
        tokens: Length of the long input sequence; default by the size of the model.
        trained: Paths of the output's modules that were trained after they had been converted.
        generation: Whether to generate text with caches too: in batches, from chunks, beyond windows.
        on_progress: Called with a line for each step.

    Returns:
        A report; ``report.passed`` says whether the output may be trusted.

    Raises:
        UsageError: The mode is unknown.
        UnsupportedError: There is no reference to verify against: no torch, or transformers does not have the model.
        VerificationError: mlx-lm cannot load the output.
    """
    if mode not in MODES:
        raise UsageError(f"unknown verification mode {mode!r}, expected one of {', '.join(MODES)}")
    if reason := unavailable():
        raise UnsupportedError(reason, hint="pip install 'mlxport[torch]', then: mlxport verify DST --against SRC")
    from mlxport.parity.execute import execute

    start = time.monotonic()
    report = execute(
        Path(output),
        checkpoint,
        mode,
        invert,
        memory_limit,
        tokens,
        on_progress or (lambda _: None),
        trained,
        generation,
    )
    return replace(report, seconds=round(time.monotonic() - start, 2))
