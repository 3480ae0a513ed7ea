"""Parity with both models in memory, one after the other."""

from __future__ import annotations

import gc
from collections.abc import Mapping

import numpy as np
import torch

from mlxport.model import loaded as out
from mlxport.parity import reference as ref
from mlxport.parity.metrics import compare_logits
from mlxport.parity.parity_report import Comparison, Divergence, ParityReport
from mlxport.parity.quantized_modules import compare_modules
from mlxport.parity.recording import Array
from mlxport.parity.setup import ORIGINAL, SAME_WEIGHTS, STEPPED, Run
from mlxport.parity.torch_rows import TORCH_DTYPES, read_tensor
from mlxport.quant.tolerances import EQUAL

__all__ = ["same_weights", "verify_full"]


def _reference_logits(run: Run, weights: Mapping[str, torch.Tensor] | None = None) -> Array:
    model = ref.load_reference(run.checkpoint, weights)
    logits = np.concatenate([ref.logits(model, ids) for ids in run.ids])
    del model
    gc.collect()
    return logits


def same_weights(run: Run) -> Mapping[str, torch.Tensor] | None:
    """What the torch model needs to hold the very weights that were stored; None where that cannot be had."""
    layout = run.layout
    if layout is not None:
        tensors = run.checkpoint.tensors.items()
        return {name: layout.rows(name) if name in layout else read_tensor(r) for name, r in tensors}
    if run.bits is not None:
        return None
    run.note(f"without an inverse layout the original's weights, rounded to {run.dtype}, stand for the stored ones")
    dtype = TORCH_DTYPES[run.dtype]
    rounded = ref.state_dict(run.checkpoint)
    return {name: t.to(dtype).to(torch.float32) if t.is_floating_point() else t for name, t in rounded.items()}


def _compare(run: Run) -> list[Comparison]:
    row = run.row()
    run.say("running the output in MLX")
    out.upcast(run.model)
    whole = [out.logits(run.model, ids) for ids in run.ids]
    logits = np.concatenate(whole)
    # The order of additions differs between one pass and single steps, so the row is that of equal weights.
    stepped = compare_logits(STEPPED, out.stepped_logits(run.model, run.ids[-1]), whole[-1], run.equal_row)
    run.say("running the original in torch")
    comparisons = [compare_logits(ORIGINAL, logits, _reference_logits(run), row)]
    if not stepped.passed:
        comparisons.append(stepped)
    if row.row in EQUAL:
        return comparisons
    run.say("running the stored weights in torch")
    same = same_weights(run)
    if same is None:
        return [*comparisons, compare_modules(run.stored)]
    return [*comparisons, compare_logits(SAME_WEIGHTS, logits, _reference_logits(run, same), run.equal_row)]


def _diverging(run: Run, comparisons: list[Comparison]) -> Divergence | None:
    from mlxport.parity.bisect import bisect, wrong_tensors

    run.say("looking for the first module that diverges")
    # A wrong tensor shows against the original; everything else against the very weights that the output holds.
    wrong = wrong_tensors(run)
    lossy = any(c.name not in (ORIGINAL, STEPPED) for c in comparisons)
    weights = same_weights(run) if lossy and not wrong else None
    model = ref.load_reference(run.checkpoint, weights)
    return bisect(run, model, tight=not lossy or weights is not None, wrong=wrong)


def verify_full(run: Run) -> ParityReport:
    """Compare weights, logits and, when either fails, modules."""
    run.check_weights(bounded=False)
    comparisons = _compare(run)
    divergence = None if run.passed(comparisons) else _diverging(run, comparisons)
    return run.report("full", comparisons, divergence)
