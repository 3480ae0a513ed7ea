"""Choose inputs and mode, then run the verification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from mlxport.errors import ConfigError, MlxportError, UnsupportedError
from mlxport.model import loaded as out
from mlxport.model.memory import available_memory
from mlxport.model.tokens import probe_ids
from mlxport.model_config import ModelConfig
from mlxport.parity import reference as ref
from mlxport.parity.far_positions import growth_note
from mlxport.parity.folder_reference import verify_against_folder
from mlxport.parity.fp8 import source_weights
from mlxport.parity.inverse import Invert, own_inverse
from mlxport.parity.parity_report import ParityReport, Positions
from mlxport.parity.probe_length import affordable_length, probe_length
from mlxport.parity.setup import Run
from mlxport.run.load import in_mlx_files
from mlxport.source.jsonfile import read_object
from mlxport.source.written_code import model_file
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


def _limits(checkpoint: Checkpoint, folder: Path) -> tuple[int | None, bool, bool]:
    """Up to how many tokens mlx-lm computes the same, whether a near variant only, and whether of attention too."""
    from mlxport.layouts.mlx_lm.normalize import normalize_config

    if model_file(folder, read_object(folder / "config.json", ConfigError, unique=False)) is not None:
        return None, False, False  # its own source computes all that the original does
    try:
        normalized = normalize_config(checkpoint.config)
    except MlxportError:
        return None, False, False
    return normalized.exact_tokens, normalized.approximate, normalized.near_attention


def execute(
    folder: Path,
    checkpoint: Checkpoint,
    mode: str,
    invert: Invert | None,
    memory_limit: int | None,
    tokens: int | None,
    say: Callable[[str], None],
    trained: frozenset[str] = frozenset(),
    generation: bool = False,
) -> ParityReport:
    """Run one verification; see ``mlxport.parity.verify``."""
    from mlxport.layouts.mlx_lm.opening import text_part

    invert = invert or _default_inverse(checkpoint)
    work = _Sides(folder, text_part(checkpoint), mode, invert, memory_limit, tokens, say, trained, generation)
    if not in_mlx_files(checkpoint.weight_files):
        return _against_torch(work)
    # Of many architectures the layouts are one; where they are not, torch refuses it or computes something else.
    try:
        report = _against_torch(work)
        if report.passed:
            return report
    except UnsupportedError:
        pass
    settings = checkpoint.model_config
    affordable = probe_length(work.parameters, settings.context_length, settings.sliding_window)
    run, mode = _run(work, settings.needed("vocabulary"), affordable, None, False)
    report = verify_against_folder(run, streamed=mode == "layerwise")
    upto = max(len(ids) for ids in run.ids)
    reason = "positions beyond are proven against PyTorch, which does not read the original's layout"
    positions = Positions(upto, max(settings.context_length or 0, upto), reason=reason)
    return replace(report, positions=positions) if report.passed else report


@dataclass(frozen=True)
class _Sides:
    """What was asked for; see ``execute``."""

    folder: Path
    checkpoint: Checkpoint
    mode: str
    invert: Invert | None
    memory_limit: int | None
    tokens: int | None
    say: Callable[[str], None]
    trained: frozenset[str]
    generation: bool

    @property
    def parameters(self) -> int:
        """Of the original."""
        return sum(prod(ref.shape) for ref in self.checkpoint.tensors.values())


def _run(
    work: _Sides, vocabulary: int, affordable: tuple[int, list[str]], exact_tokens: int | None, near: bool
) -> tuple[Run, str]:
    """The verification and its mode, on as many tokens as are affordable, and what so many cannot show."""
    checkpoint, folder, tokens = work.checkpoint, work.folder, work.tokens
    length, notes = (tokens, []) if tokens else affordable
    if not tokens and exact_tokens is not None and length > exact_tokens:
        length = exact_tokens
        notes.append(f"{length} tokens: beyond, mlx-lm computes another attention than the original")
    ids, more = probe_ids(checkpoint.root, vocabulary, length, trust_remote_code=checkpoint.trust_remote_code)
    limit = available_memory() // 2 if work.memory_limit is None else work.memory_limit
    mode = work.mode
    if mode == "auto":
        small = work.parameters <= FULL_PARAMETERS and full_bytes(checkpoint, length, vocabulary) <= limit
        mode = "full" if small else "layerwise"
    model = out.load_output(folder, trust_remote_code=checkpoint.trust_remote_code, in_float32=True)
    floats, dtype = out.float_dtypes(folder)
    run = Run(
        folder=folder,
        checkpoint=checkpoint,
        model=model,
        ids=ids,
        invert=work.invert,
        say=work.say,
        packing=out.packings(model),
        floats=floats,
        dtype=dtype,
        near=near,
        trained=work.trained,
        notes=[*notes, *more],
    )
    return run, mode


def _against_torch(work: _Sides) -> ParityReport:
    checkpoint = work.checkpoint
    source_weights(checkpoint)  # refuses, before anything is read, what no reference can be made from
    config = ref.text_config(ref.load_config(checkpoint))
    settings = config.to_dict()
    theirs = ModelConfig(settings)
    context = checkpoint.model_config.context_length or theirs.context_length
    exact_tokens, near, near_attention = _limits(checkpoint, work.folder)
    affordable = affordable_length(work.parameters, checkpoint.model_config, config)
    run, mode = _run(work, theirs.needed("vocabulary"), affordable, exact_tokens, near)
    report = _compared(run, mode)
    if not report.passed:  # what is wrong on the first tokens is not looked for on later ones
        return report
    from mlxport.parity.far_probe import probe_positions

    upto = max(len(ids) for ids in run.ids)
    positions = probe_positions(run, settings, context, exact_tokens, upto, near_attention)
    said = (*report.notes, *filter(None, [growth_note(settings, context)]))
    report = replace(report, positions=positions, notes=said, passed=not positions.failures)
    return _generated(work, run, report, context, theirs.sliding_window) if work.generation else report


def _generated(work: _Sides, run: Run, report: ParityReport, context: int | None, window: int | None) -> ParityReport:
    """The report with what text generated with caches shows; what is wrong without them is not looked for there."""
    from mlxport.parity.continuations import probe_generation

    if not report.passed:
        return report
    known = len(run.notes)
    found = probe_generation(run, report.mode, work.parameters, context, window)
    notes = (*report.notes, *run.notes[known:])
    return replace(report, generation=found, notes=notes, passed=not found.failures)


def _compared(run: Run, mode: str) -> ParityReport:
    if mode == "full":
        from mlxport.parity.full import verify_full

        return verify_full(run)
    from mlxport.parity.layerwise import verify_layerwise

    return verify_layerwise(run)
