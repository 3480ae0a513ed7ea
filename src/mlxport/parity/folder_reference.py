"""An MLX folder as original: where torch does not read its layout, the reference is the folder itself, in mlx-lm."""

from __future__ import annotations

import gc

import numpy as np

from mlxport.model import loaded as out
from mlxport.model.streaming import stream
from mlxport.parity.metrics import compare_logits
from mlxport.parity.parity_report import ParityReport
from mlxport.parity.quantized_modules import compare_modules
from mlxport.parity.recording import Array
from mlxport.parity.setup import ORIGINAL, STEPPED, Run
from mlxport.quant.tolerances import EQUAL

__all__ = ["verify_against_folder"]


def verify_against_folder(run: Run, *, streamed: bool) -> ParityReport:
    """Compare weights with the original's, and logits with those that mlx-lm computes of the original.

    Args:
        run: The verification.
        streamed: Read each weight where it is used, on both sides.
    """
    run.note("the original is in MLX's layout, which torch does not read: the reference is that folder, run by mlx-lm")
    run.check_weights(bounded=streamed)
    row = run.row()
    run.say("running the output in MLX")
    stream(run.model, run.folder) if streamed else out.upcast(run.model)
    whole = [out.logits(run.model, ids) for ids in run.ids]
    stepped = compare_logits(STEPPED, out.stepped_logits(run.model, run.ids[-1], 2), whole[-1], run.equal_row)
    run.say("running the original in MLX")
    comparisons = [compare_logits(ORIGINAL, np.concatenate(whole), _original(run, streamed), row)]
    if not stepped.passed:
        comparisons.append(stepped)
    if row.row not in EQUAL and run.bits is not None:
        comparisons.append(compare_modules(run.stored))
    return run.report("layerwise" if streamed else "full", comparisons, None)


def _original(run: Run, streamed: bool) -> Array:
    root = run.checkpoint.root
    model = out.load_output(root, trust_remote_code=run.checkpoint.trust_remote_code)
    stream(model, root) if streamed else out.upcast(model)
    logits = np.concatenate([out.logits(model, ids, "the original") for ids in run.ids])
    del model
    gc.collect()
    return logits
