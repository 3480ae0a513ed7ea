"""Parity module by module from disk: both models at once would not fit, one tensor at a time always does."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.model import loaded as out
from mlxport.model.block_paths import block_of, is_block
from mlxport.model.streaming import stream
from mlxport.parity import reference as ref
from mlxport.parity.lazy_reference import lazy_model
from mlxport.parity.metrics import compare_logits, relative_error
from mlxport.parity.parity_report import Comparison, Divergence, LayerError, ParityReport
from mlxport.parity.path_pairs import align
from mlxport.parity.quantized_modules import compare_modules
from mlxport.parity.recording import Array, Record, recording_mlx, recording_torch
from mlxport.parity.setup import ORIGINAL, SAME_WEIGHTS, Run
from mlxport.parity.tolerances import EQUAL

__all__ = ["verify_layerwise"]


def _model(run: Run, *, stored: bool) -> Any:
    layout = run.layout if stored else None
    return lazy_model(run.checkpoint, layout=layout)


def _run_torch(run: Run, *, stored: bool = False) -> tuple[Array, dict[str, Record]]:
    model = _model(run, stored=stored)
    with recording_torch(model, is_block) as records:
        logits = ref.logits(model, run.ids[0])
    parts = [logits, *(ref.logits(model, ids) for ids in run.ids[1:])]
    del model
    gc.collect()
    return np.concatenate(parts), records


def _run_mlx(run: Run, keep: Callable[[str], bool]) -> tuple[Array, dict[str, Record]]:
    limit = mx.set_cache_limit(0)
    try:
        with recording_mlx(run.model, keep) as records:
            logits = out.logits(run.model, run.ids[0])
        return np.concatenate([logits, *(out.logits(run.model, ids) for ids in run.ids[1:])]), records
    finally:
        mx.set_cache_limit(limit)


def _layer_errors(reference: dict[str, Record], output: dict[str, Record]) -> tuple[LayerError, ...]:
    errors = []
    for path, other in align(list(output), list(reference)).items():
        ours, theirs = output[path].output, reference[other].output
        if ours is not None and theirs is not None and ours.size == theirs.size:
            errors.append(LayerError(path, relative_error(ours.reshape(theirs.shape), theirs)))
    return tuple(errors)


def _same_weights(run: Run, logits: Array) -> tuple[Comparison | None, dict[str, Record]]:
    """The output against the stored weights in torch, or its modules one by one where these cannot be mapped back."""
    if run.layout is not None:
        run.say("running the stored weights in torch, module by module")
        reference, records = _run_torch(run, stored=True)
        return compare_logits(SAME_WEIGHTS, logits, reference, run.equal_row), records
    if run.bits is not None:
        return compare_modules(run.stored), {}
    run.note("rounded weights were compared with the original's only")
    return None, {}


def _diverging(run: Run, theirs: dict[str, Record], ours: dict[str, Record], *, tight: bool) -> Divergence | None:
    """Bisect within the first block that diverges: the modules of all blocks at once would not fit."""
    from mlxport.parity.bisect import bisect, first_bad, wrong_tensors

    run.say("looking for the first module that diverges")
    wrong = wrong_tensors(run)
    block = block_of(wrong[0][0]) if wrong else first_bad(ours, theirs, tight=tight)
    other = align([block], list(theirs)).get(block) if block else None

    def keep(path: str) -> bool:
        inside = any(path == b or path.startswith(f"{b}.") for b in (block, other) if b)
        return inside or block_of(path) is None

    model = _model(run, stored=tight and not wrong and not run.exact)
    return bisect(run, model, tight=tight, wrong=wrong, keep=keep)


def verify_layerwise(run: Run) -> ParityReport:
    """Compare weights, logits and, block by block, hidden states; each side is fed its own activations."""
    run.check_weights(bounded=True)
    row = run.row()
    for path in stream(run.model, run.folder):
        run.note(f"{path} stays in memory once read")
    run.say("running the output in MLX, module by module")
    logits, ours = _run_mlx(run, is_block)
    run.say("running the original in torch, module by module")
    original, theirs = _run_torch(run)
    comparisons = [compare_logits(ORIGINAL, logits, original, row)]
    layers, tight = _layer_errors(theirs, ours), row.row in EQUAL
    if not tight:
        same, records = _same_weights(run, logits)
        comparisons += [same] if same is not None else []
        tight, theirs = (True, records) if records else (tight, theirs)
    divergence = None if run.passed(comparisons) else _diverging(run, theirs, ours, tight=tight)
    return run.report("layerwise", comparisons, divergence, layers)
