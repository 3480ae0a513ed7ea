"""Parity module by module from disk: both models at once would not fit, one tensor at a time always does."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlxport.model import loaded as out
from mlxport.model.block_paths import block_of, is_block
from mlxport.model.memory import uncached
from mlxport.model.streaming import stream
from mlxport.parity import reference as ref
from mlxport.parity.lazy_reference import lazy_model
from mlxport.parity.metrics import compare_logits, relative_error
from mlxport.parity.parity_report import Comparison, Divergence, LayerError, ParityReport
from mlxport.parity.path_pairs import align
from mlxport.parity.quantized_modules import compare_modules
from mlxport.parity.recording import Array, Record, recording_mlx, recording_torch
from mlxport.parity.setup import ORIGINAL, SAME_WEIGHTS, STEPPED, Run
from mlxport.quant.tolerances import EQUAL, Tolerance

__all__ = ["verify_layerwise"]

_STEPS = 2


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


def _run_mlx(run: Run, keep: Callable[[str], bool]) -> tuple[list[Array], dict[str, Record]]:
    """The long sequence in one pass, the others as text is generated: each step reads all weights, so there are few."""
    with uncached():
        with recording_mlx(run.model, keep) as records:
            logits = out.logits(run.model, run.ids[0])
        return [logits, *(out.stepped_logits(run.model, ids, _STEPS) for ids in run.ids[1:])], records


def _layer_errors(reference: dict[str, Record], output: dict[str, Record]) -> tuple[LayerError, ...]:
    errors = []
    for path, other in align(list(output), list(reference)).items():
        ours, theirs = output[path].output, reference[other].output
        if ours is not None and theirs is not None and ours.size == theirs.size:
            errors.append(LayerError(path, relative_error(ours.reshape(theirs.shape), theirs)))
    return tuple(errors)


@dataclass(frozen=True)
class _References:
    """What the output is held against: torch with the original's weights, and with the stored ones if they differ."""

    row: Tolerance
    original: Array
    stored: Array | None = None
    modules: Comparison | None = None

    def compare(self, run: Run, logits: list[Array]) -> list[Comparison]:
        """The comparisons of a report, in its order."""
        whole = np.concatenate(logits)
        found = [compare_logits(ORIGINAL, whole, self.original, self.row)]
        if self.stored is not None:
            found.append(compare_logits(SAME_WEIGHTS, whole, self.stored, run.equal_row))
        return [*found, self.modules] if self.modules is not None else found


def _same_weights(run: Run, references: _References) -> tuple[_References, dict[str, Record]]:
    """The stored weights in torch, or the output's modules one by one where these cannot be mapped back."""
    if run.layout is not None:
        run.say("running the stored weights in torch, module by module")
        stored, records = _run_torch(run, stored=True)
        return replace(references, stored=stored), records
    if run.bits is not None:
        return replace(references, modules=compare_modules(run.stored)), {}
    run.note("rounded weights were compared with the original's only")
    return references, {}


def _steps_apart(run: Run, logits: list[Array]) -> tuple[list[Array], Comparison]:
    """The same with every sequence in one pass, and what the steps gave against that."""
    with uncached():
        last = out.logits(run.model, run.ids[-1])
    return [*logits[:-1], last], compare_logits(STEPPED, logits[-1], last, run.equal_row)


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
    references = _References(row, original)
    layers, tight = _layer_errors(theirs, ours), row.row in EQUAL
    if not tight:
        references, records = _same_weights(run, references)
        tight, theirs = (True, records) if records else (tight, theirs)
    comparisons = references.compare(run, logits)
    if not tight or not run.passed(comparisons):
        # Steps that are wrong are a fault of their own; only equal weights in torch show that there is none.
        logits, stepped = _steps_apart(run, logits)
        comparisons = references.compare(run, logits) + ([] if stepped.passed else [stepped])
    divergence = None if run.passed(comparisons) else _diverging(run, theirs, ours, tight=tight)
    return run.report("layerwise", comparisons, divergence, layers)
