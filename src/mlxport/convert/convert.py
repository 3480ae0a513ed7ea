"""The stages composed: source → transform → plan → write → verify, into one folder that appears when it is whole."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.allocate import Target
from mlxport.convert.convert_report import MARGIN_BYTES, ConvertReport
from mlxport.convert.job import Hashes, Job
from mlxport.convert.keywords import with_keywords
from mlxport.convert.options import DTYPES, ConvertOptions
from mlxport.convert.resolved_options import ResolvedOptions, resolve
from mlxport.convert.without_torch import leave_torch_out
from mlxport.errors import DiskError, Interrupted, SourceError, UsageError, disk_full
from mlxport.output.plan import make_plan, parse_size
from mlxport.output.record import fingerprint, read_record
from mlxport.output.workspace import absolute, check_destination, check_space, free_space, open_workspace, space_taken
from mlxport.progress import make_progress
from mlxport.run.kv import check_model
from mlxport.source import open_checkpoint, refuse_remote_code
from mlxport.source.tokenizer_files import check_tokenizer_files, embedding_rows
from mlxport.types import CalibrationPlan, Checkpoint

if TYPE_CHECKING:
    from mlxport.layouts.assembly import Conversion
    from mlxport.parity import ParityReport

__all__ = ["ConvertReport", "convert", "verify"]


@with_keywords(ConvertOptions)
def convert(source: str | Path, destination: str | Path, options: ConvertOptions) -> ConvertReport:
    """Convert a Hugging Face checkpoint to a folder that mlx-lm loads, and prove it against PyTorch.

    Args:
        source: A folder or a hub id.
        destination: The output folder; it appears only when it is whole and verified.
        options: A keyword for each field.

    Raises:
        MlxportError: One of the tree in ``mlxport.errors``; nothing is left under ``destination``.
    """
    asked = resolve(options)
    target = absolute(destination)
    check_destination(target, str(source), asked.overwrite)
    if asked.verify in ("full", "layerwise") and (reason := _no_reference()):
        raise UsageError(
            f"--verify {asked.verify}: {reason}", hint="pip install 'mlxport[torch]', or use --verify none"
        )
    if asked.verify == "none":
        leave_torch_out(str(source), asked.layout)
    checkpoint = _open(str(source), asked)
    asked = replace(asked, layout=_layout(checkpoint.config, asked))
    if asked.limit is not None:
        asked = _allocated(checkpoint, asked.limit, asked)
    hashes = Hashes(checkpoint)
    try:
        if not asked.dry_run:
            hashes.start()
        return _planned(str(source), checkpoint, target, asked, hashes)
    finally:
        hashes.stop()


def _allocated(checkpoint: Checkpoint, limit: Target, options: ResolvedOptions) -> ResolvedOptions:
    """The options with the settings that were chosen under a limit."""
    from mlxport.allocate.choose import find_allocation

    if options.layout == "generated":
        message = "--fit, --target-size and --target-bpw measure mlx-lm's model, and this layout is generated"
        raise UsageError(message, hint="choose bits with -q, or a recipe with --recipe")
    check_tokenizer_files(checkpoint, None)  # again with the embedding's rows once these are known
    with make_progress(0, f"choosing bits for {checkpoint.name}", quiet=options.quiet) as progress:
        found = find_allocation(
            checkpoint,
            limit,
            dtype=options.dtype,
            max_shard_size=options.max_shard_size,
            shard_by=options.shard_by,
            progress=progress,
        )
    options = replace(options, quant=found.request, dtype=found.dtype, allocation=found.report)
    if found.request is None:  # the model fits as it is: there is nothing to calibrate or to train
        return replace(options, calibration=None, training=None)
    if options.training is not None:
        options.training.check(found.request)
    return options


def _planned(
    source: str,
    checkpoint: Checkpoint,
    target: Path,
    options: ResolvedOptions,
    hashes: Hashes,
) -> ConvertReport:
    if options.layout == "generated":
        from mlxport.port.folder_job import PortJob
        from mlxport.port.port_source import open_generated

        ported = open_generated(checkpoint, options)
        make_job = functools.partial(PortJob, ported=ported)
        return carry_out(ported.conversion, source, checkpoint, target, options, hashes, make_job)
    from mlxport.layouts.mlx_lm.opening import lazy_model, open_target

    if options.report:
        from mlxport.quality.text_windows import load_tokenizer

        load_tokenizer(checkpoint.root, trust_remote_code=options.trust_remote_code)  # refused now, not at the end
    conversion = open_target(checkpoint, dtype=options.dtype, quant=options.quant)
    if options.kv is not None:
        model, config = lazy_model(checkpoint, options.dtype)
        remarks = check_model(model, options.kv, str(config.get("model_type")))
        conversion = replace(conversion, notes=(*conversion.notes, *remarks, options.kv.note()))
    if options.calibration is not None:
        from mlxport.convert.calibrated_job import prepare

        make_calibrated, calibration = prepare(checkpoint, conversion, options)
        return carry_out(conversion, source, checkpoint, target, options, hashes, make_calibrated, calibration)
    return carry_out(conversion, source, checkpoint, target, options, hashes, Job)


def carry_out(
    conversion: Conversion,
    source: str,
    checkpoint: Checkpoint,
    target: Path,
    options: ResolvedOptions,
    hashes: Hashes,
    make_job: Callable[..., Job],
    calibration: CalibrationPlan | None = None,
) -> ConvertReport:
    """Plan and, unless it is a dry run, write, verify and publish.

    Args:
        conversion: What to write.
        source: The source as the user gave it.
        checkpoint: The opened source.
        target: The destination.
        options: What was asked for.
        hashes: Of the source, being computed.
        make_job: Makes the job of the layout.
        calibration: What calibrating takes.
    """
    plan = make_plan(
        conversion.tensors(),
        max_bytes=parse_size(options.max_shard_size),
        by=options.shard_by,
        dtype=conversion.dtype,
        parameters=conversion.parameters,
        quantized=conversion.quantized,
        kept=conversion.kept,
        dropped=conversion.program.unused(),
        working_bytes=conversion.working_bytes(),
    )
    plan = replace(plan, calibration=calibration)
    shapes = {name: output.shape for name, output in conversion.program.outputs.items()}
    tokenizer = options.layout != "generated"
    remarks = check_tokenizer_files(checkpoint, embedding_rows(conversion.config, shapes)) if tokenizer else ()
    chosen = options.allocation.notes if options.allocation else ()
    notes = (*checkpoint.problems, *conversion.notes, *chosen, *remarks)
    needed = plan.nbytes + MARGIN_BYTES + sum(path.stat().st_size for path in checkpoint.side_files)
    needed += plan.nbytes if calibration is not None else 0  # what is calibrated lies beside the shards for a while
    if options.training is not None:
        needed += options.training.disk_bytes(max(shard.nbytes for shard in plan.shards), plan.parameters)
    report = ConvertReport(target, plan, notes, dry_run=options.dry_run, allocation=options.allocation)
    if options.dry_run:
        return replace(report, free_bytes=free_space(target))
    report = replace(report, free_bytes=check_space(target, needed, space_taken(target)))
    job = make_job(source, checkpoint, conversion, plan, options, hashes)
    with open_workspace(target, fingerprint(checkpoint, plan, options.recorded()), options.overwrite) as workspace:
        try:
            return job.run(workspace, report)
        except KeyboardInterrupt:
            finished = f"{len(workspace.done)} of {len(plan.shards)} shards are finished in {workspace.folder}"
            raise Interrupted(f"stopped: {finished}", hint="run the same command again to go on") from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_full(workspace.folder) from error
            where = error.filename or workspace.folder
            hint = "mend what the system complains of and run the same command again: finished shards are kept"
            raise DiskError(f"{where}: {error.strerror or error}", hint=hint) from error


def _layout(config: Mapping[str, Any], options: ResolvedOptions) -> str:
    """The layout that ``auto`` means: mlx-lm's where it has the architecture, else source of the model's own."""
    from mlxport.layouts.mlx_lm.opening import has_architecture

    if options.layout != "auto":
        return options.layout
    return "mlx-lm" if has_architecture(config) or not _can_port(config) else "generated"


def _can_port(config: Mapping[str, Any]) -> bool:
    """Whether transformers has the architecture, and torch is there to capture it."""
    if _no_reference():
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return str(config.get("model_type")) in CONFIG_MAPPING


def _no_reference() -> str:
    from mlxport import parity

    return parity.unavailable()


def _open(source: str, options: ResolvedOptions) -> Checkpoint:
    def check(config: Mapping[str, Any]) -> None:
        if not options.trust_remote_code:
            refuse_remote_code(config, source)
        if options.limit is not None:
            options.limit.check(config)
        # Before anything is fetched; of a folder, the target checks it.
        if not os.path.isdir(os.path.expanduser(source)):
            from mlxport.layouts.mlx_lm.opening import check_supported

            layout = _layout(config, options)
            replace(options, layout=layout)  # options that are not of this layout are refused
            if layout == "mlx-lm" or not _can_port(config):
                check_supported(config, f"{source}/config.json")

    return open_checkpoint(
        source, revision=options.revision, trust_remote_code=options.trust_remote_code, check_config=check
    )


def _trained(record: Mapping[str, Any]) -> frozenset[str]:
    """Paths of the modules that a distillation changed, by a folder's record."""
    distilled = record.get("distilled")
    paths = distilled.get("modules") if isinstance(distilled, dict) else None
    return frozenset(path for path in paths if isinstance(path, str)) if isinstance(paths, list) else frozenset()


def verify(
    output: str | Path,
    against: str | Path,
    *,
    mode: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    quiet: bool = True,
) -> ParityReport:
    """Compare a converted folder with the checkpoint that it was made from, now or long after the conversion.

    Args:
        output: The converted folder.
        against: The original: a folder or a hub id.
        mode: ``auto``, ``full`` or ``layerwise``.
        revision: Branch, tag or commit of a hub repository.
        trust_remote_code: Allow code of the checkpoint to run.
        quiet: Show no progress.

    Returns:
        The figures; ``passed`` says whether they are within the tolerances.

    Raises:
        MlxportError: Either folder cannot be used, or torch is not installed.
    """
    from mlxport import parity

    if mode not in parity.MODES:
        raise UsageError(f"--mode {mode!r} does not exist", hint=f"choose one of {', '.join(parity.MODES)}")
    folder = absolute(output)
    if not (folder / "config.json").is_file():
        raise SourceError(
            f"{output} is not a converted model (no config.json)", hint="give the folder that convert wrote"
        )
    options = ResolvedOptions(revision=revision, trust_remote_code=trust_remote_code)
    checkpoint = _open(str(against), options)
    record = read_record(folder)
    asked, made = record.get("options"), record.get("output")
    dtype = asked.get("dtype", "auto") if isinstance(asked, dict) else "auto"
    written = made.get("files") if isinstance(made, dict) else None
    with make_progress(0, f"verifying {folder.name}", quiet=quiet) as progress:
        report = parity.verify(
            folder,
            checkpoint,
            mode=mode,
            invert=parity.own_inverse(checkpoint, dtype if dtype in DTYPES else "auto"),
            trained=_trained(record),
            trust_remote_code=trust_remote_code,
            on_progress=progress.message,
        )
        progress.message("comparing the tokenizer and the files")
        problems = parity.carried_problems(
            folder, checkpoint, written if isinstance(written, dict) else {}, trust_remote_code=trust_remote_code
        )
        return replace(report, problems=problems, passed=report.passed and not problems)
