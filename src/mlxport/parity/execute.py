"""Choose inputs and mode, then run the verification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path

from mlxport.errors import MlxportError
from mlxport.model import loaded as out
from mlxport.model.memory import available_memory
from mlxport.model.tokens import probe_ids
from mlxport.model_config import ModelConfig
from mlxport.parity import reference as ref
from mlxport.parity.far_positions import growth_note
from mlxport.parity.fp8 import source_weights
from mlxport.parity.inverse import Invert, own_inverse
from mlxport.parity.parity_report import ParityReport
from mlxport.parity.probe_length import affordable_length
from mlxport.parity.setup import Run
from mlxport.types import Checkpoint

__all__ = ["execute", "full_bytes"]

# Of a model that ``auto`` holds in memory. A larger one is done sooner module by module: what is not in a core's cache
# is as slow to reach in memory as in the system's cache of files, and several copies of it must be made first.
FULL_PARAMETERS = 50_000_000


def full_bytes(checkpoint: Checkpoint, tokens: int, vocabulary: int) -> int:
    """Estimated peak of ``full``: a float32 model beside the tensors that it is loaded from, and the logits."""
    parameters = sum(prod(r.shape) for r in checkpoint.tensors.values())
    return 9 * parameters + 3 * 8 * tokens * vocabulary + 500_000_000


def _default_inverse(checkpoint: Checkpoint) -> Invert | None:
    """mlx-lm's own layout traced, None where mlx-lm does not take the checkpoint."""
    inverse = own_inverse(checkpoint)
    try:
        inverse({})
    except MlxportError:
        return None
    return inverse


def _limits(checkpoint: Checkpoint) -> tuple[int | None, bool]:
    """Up to how many tokens mlx-lm computes the same, and whether it computes a near variant only."""
    from mlxport.layouts.mlx_lm.normalize import normalize_config

    try:
        normalized = normalize_config(checkpoint.config)
    except MlxportError:
        return None, False
    return normalized.exact_tokens, normalized.approximate


def execute(
    folder: Path,
    checkpoint: Checkpoint,
    mode: str,
    invert: Invert | None,
    memory_limit: int | None,
    tokens: int | None,
    say: Callable[[str], None],
    trained: frozenset[str] = frozenset(),
) -> ParityReport:
    """Run one verification; see ``mlxport.parity.verify``."""
    source_weights(checkpoint)  # refuses, before anything is read, what no reference can be made from
    config = ref.text_config(ref.load_config(checkpoint))
    parameters = sum(prod(r.shape) for r in checkpoint.tensors.values())
    vocabulary = ModelConfig(config.to_dict()).needed("vocabulary")
    length, notes = (tokens, []) if tokens else affordable_length(parameters, checkpoint.model_config, config)
    exact_tokens, near = _limits(checkpoint)
    if not tokens and exact_tokens is not None and length > exact_tokens:
        length = exact_tokens
        notes.append(f"{length} tokens: beyond, mlx-lm computes another attention than the original")
    ids, more = probe_ids(checkpoint.root, vocabulary, length, trust_remote_code=checkpoint.trust_remote_code)
    limit = available_memory() // 2 if memory_limit is None else memory_limit
    if mode == "auto":
        small = parameters <= FULL_PARAMETERS and full_bytes(checkpoint, length, vocabulary) <= limit
        mode = "full" if small else "layerwise"
    model = out.load_output(folder, trust_remote_code=checkpoint.trust_remote_code)
    floats, dtype = out.float_dtypes(folder)
    run = Run(
        folder=folder,
        checkpoint=checkpoint,
        model=model,
        ids=ids,
        invert=invert or _default_inverse(checkpoint),
        say=say,
        packing=out.packings(model),
        floats=floats,
        dtype=dtype,
        near=near,
        trained=trained,
        notes=[*notes, *more],
    )
    report = _compared(run, mode)
    if not report.passed:  # what is wrong on the first tokens is not looked for on later ones
        return report
    from mlxport.parity.far_probe import probe_positions

    settings, context = config.to_dict(), checkpoint.model_config.context_length
    context = context or ModelConfig(settings).context_length
    positions = probe_positions(run, settings, context, exact_tokens, max(len(ids) for ids in run.ids))
    said = (*report.notes, *filter(None, [growth_note(settings, context)]))
    return replace(report, positions=positions, notes=said, passed=not positions.failures)


def _compared(run: Run, mode: str) -> ParityReport:
    if mode == "full":
        from mlxport.parity.full import verify_full

        return verify_full(run)
    from mlxport.parity.layerwise import verify_layerwise

    return verify_layerwise(run)
