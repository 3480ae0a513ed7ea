"""The stages composed: source → transform → plan → write → verify, into one folder that appears when it is whole."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.allocate import Target, make_target
from mlxport.calibrate.calibration_text import calibrated_request, read_calibration, refuse_quantizer
from mlxport.convert.job import Hashes, Job
from mlxport.convert.options import DTYPES, MARGIN_BYTES, ConvertReport, Options
from mlxport.convert.without_torch import leave_torch_out
from mlxport.distill import DistillSettings
from mlxport.errors import DiskError, Interrupted, SourceError, UsageError, disk_full
from mlxport.output.plan import DEFAULT_SHARD_SIZE, make_plan, parse_size
from mlxport.output.record import fingerprint, read_record
from mlxport.output.workspace import absolute, check_destination, check_space, free_space, open_workspace, space_taken
from mlxport.progress import make_progress
from mlxport.quant import make_request
from mlxport.run.kv import check_model, make_kv
from mlxport.source import open_checkpoint, refuse_remote_code
from mlxport.source.tokenizer_files import check_tokenizer_files, embedding_rows
from mlxport.types import CalibrationPlan, Checkpoint

if TYPE_CHECKING:
    from mlxport.layouts.assembly import Conversion
    from mlxport.parity import ParityReport

__all__ = ["ConvertReport", "convert", "verify"]


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str = "auto",
    quantize: int | str | bool | None = None,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str | None = None,
    recipe: str | Path | None = None,
    quantizer: str | None = None,
    fit: str | bool | None = None,
    context: int | None = None,
    target_size: str | int | None = None,
    target_bpw: float | None = None,
    calibrate: str | Path | None = None,
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
    shard_by: str = "size",
    layout: str = "auto",
    verify: str = "auto",
    overwrite: bool = False,
    dry_run: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_overflow: bool = False,
    dynamic: bool = True,
    fold_batchnorm: bool = False,
    mlxfn: bool = False,
    distill: int | None = None,
    kv_bits: int | None = None,
    kv_group_size: int | None = None,
    quantized_kv_start: int | None = None,
    report: bool = False,
    report_device: str | None = None,
    quiet: bool = True,
) -> ConvertReport:
    """Convert a Hugging Face checkpoint to a folder that mlx-lm loads, and prove it against PyTorch.

    Args:
        source: A folder or a hub id.
        destination: The output folder; it appears only when it is whole and verified.
        dtype: Of what is not quantized: ``auto`` (as stored, or as the config's torch_dtype says), ``float32``,
            ``float16`` or ``bfloat16``.
        quantize: Bits (affine), a mode (``"mxfp4"``), a mixed recipe (``"mixed_4_6"``), True for 4 bits, or None.
        q_bits: Bits, beside ``quantize=True`` or a mode.
        q_group_size: Group size; the mode's default if None.
        q_mode: ``affine``, ``mxfp4``, ``nvfp4`` or ``mxfp8``.
        recipe: A TOML file of rules, or a mixed recipe's name.
        quantizer: ``rtn``, the default: the tensors of ``mlx_lm.convert``; ``search``: scales and biases of affine
            modules are chosen for the least squared error, in the same format (the default under a limit).
        fit: A machine such as ``"M2 8GB"`` (True: the Mac that this runs on): bits and group size of each module are
            chosen such that the model fits it and the predicted damage is least. Instead of ``quantize`` and the like.
        context: Tokens of prompt and answer that have to fit beside the weights; 4096 if None. With ``fit`` only.
        target_size: The same under a limit of the weight files' bytes, such as ``"6GB"``.
        target_bpw: The same under a limit of bits per weight, as mlx-lm counts them.
        calibrate: ``default`` (a text that is shipped), ``self`` (what the model writes itself), or a file of text:
            codes, scales and biases of affine modules are chosen by the activations that the model has on it; None or
            ``none``: without.
        max_shard_size: Limit of an output file, such as ``"5GB"``.
        shard_by: ``size``, or ``layer`` to keep each layer in one file.
        layout: ``mlx-lm``; ``generated``: MLX source of the model's own; ``auto``: that where mlx-lm has no such model.
        verify: ``auto``, ``full``, ``layerwise`` or ``none``.
        overwrite: Replace an existing model folder, at the very end.
        dry_run: Plan only; nothing is written.
        revision: Branch, tag or commit of a hub repository.
        trust_remote_code: Allow code of the checkpoint to run (tokenizer, reference model).
        allow_overflow: Accept values that become infinite in the target dtype.
        dynamic: As in ``port_folder``, of the generated layout only.
        fold_batchnorm: As in ``port_folder``, of the generated layout only.
        mlxfn: As in ``port_folder``, of the generated layout only.
        distill: Steps of training of the scales and biases of affine modules, and of norms, towards what the original
            predicts; None for none. The output is never worse on held-out text than without.
        kv_bits: Bits of a quantized key-value cache, recorded for ``mlxport generate`` and ``chat``; None for none.
        kv_group_size: Its group size; 64 if None.
        quantized_kv_start: Tokens from which on it is quantized; mlx-lm's own number if None.
        report: Measure what was lost, and put ``report.html`` and ``report.json`` into the output.
        report_device: A Mac to predict the speed for in the report, such as ``"M2 8GB"``.
        quiet: Show no progress.

    Raises:
        MlxportError: One of the tree in ``mlxport.errors``; nothing is left under ``destination``.
    """
    limit = make_target(
        fit, context, target_size, target_bpw, quantizer,
        quantize=quantize, q_bits=q_bits, q_group_size=q_group_size, q_mode=q_mode, recipe=recipe,
    )  # fmt: skip
    calibration, request = read_calibration(calibrate), None
    if limit is None:
        request = make_request(
            quantize, bits=q_bits, group_size=q_group_size, mode=q_mode, recipe=recipe, quantizer=quantizer
        )
        request = calibrated_request(calibration, request, quantizer)
    elif calibration is not None:
        refuse_quantizer(calibration, quantizer)
    training = None if distill is None else DistillSettings(distill)
    if training is not None and limit is None:
        training.check(request)
    options = Options(
        dtype, request, max_shard_size, shard_by, layout, verify, overwrite, allow_overflow, trust_remote_code,
        dynamic, fold_batchnorm, mlxfn, kv=make_kv(kv_bits, kv_group_size, quantized_kv_start),
        report=report, report_device=report_device, calibration=calibration, distill=training,
    )  # fmt: skip
    target = absolute(destination)
    check_destination(target, str(source), overwrite)
    if verify in ("full", "layerwise") and (reason := _no_reference()):
        raise UsageError(f"--verify {verify}: {reason}", hint="pip install 'mlxport[torch]', or use --verify none")
    if verify == "none":
        leave_torch_out(str(source), layout)
    checkpoint = _open(str(source), revision, options, limit)
    options = replace(options, layout=_layout(checkpoint.config, options))
    if limit is not None:
        options = _allocated(checkpoint, limit, options, quiet)
    hashes = Hashes(checkpoint)
    try:
        if not dry_run:
            hashes.start()
        return _planned(str(source), checkpoint, target, options, dry_run, hashes, quiet)
    finally:
        hashes.stop()


def _allocated(checkpoint: Checkpoint, limit: Target, options: Options, quiet: bool) -> Options:
    """The options with the settings that were chosen under a limit."""
    from mlxport.allocate.choose import find_allocation

    if options.layout == "generated":
        message = "--fit, --target-size and --target-bpw measure mlx-lm's model, and this layout is generated"
        raise UsageError(message, hint="choose bits with -q, or a recipe with --recipe")
    check_tokenizer_files(checkpoint, None)  # again with the embedding's rows once these are known
    with make_progress(0, f"choosing bits for {checkpoint.name}", quiet=quiet) as progress:
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
        return replace(options, calibration=None, distill=None)
    if options.distill is not None:
        options.distill.check(found.request)
    return options


def _planned(
    source: str,
    checkpoint: Checkpoint,
    target: Path,
    options: Options,
    dry_run: bool,
    hashes: Hashes,
    quiet: bool,
) -> ConvertReport:
    if options.layout == "generated":
        from mlxport.port.folder_job import PortJob
        from mlxport.port.port_source import open_generated

        ported = open_generated(checkpoint, options)
        make_job = functools.partial(PortJob, ported=ported)
        return carry_out(ported.conversion, source, checkpoint, target, options, dry_run, hashes, quiet, make_job)
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
        return carry_out(
            conversion, source, checkpoint, target, options, dry_run, hashes, quiet, make_calibrated, calibration
        )
    return carry_out(conversion, source, checkpoint, target, options, dry_run, hashes, quiet, Job)


def carry_out(
    conversion: Conversion,
    source: str,
    checkpoint: Checkpoint,
    target: Path,
    options: Options,
    dry_run: bool,
    hashes: Hashes,
    quiet: bool,
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
        dry_run: Plan only.
        hashes: Of the source, being computed.
        quiet: Show no progress.
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
    if options.distill is not None:
        needed += options.distill.disk_bytes(max(shard.nbytes for shard in plan.shards), plan.parameters)
    report = ConvertReport(target, plan, notes, dry_run=dry_run, allocation=options.allocation)
    if dry_run:
        return replace(report, free_bytes=free_space(target))
    report = replace(report, free_bytes=check_space(target, needed, space_taken(target)))
    job = make_job(source, checkpoint, conversion, plan, options, hashes)
    with open_workspace(target, fingerprint(checkpoint, plan, options.recorded()), options.overwrite) as workspace:
        try:
            return job.run(workspace, report, quiet)
        except KeyboardInterrupt:
            finished = f"{len(workspace.done)} of {len(plan.shards)} shards are finished in {workspace.folder}"
            raise Interrupted(f"stopped: {finished}", hint="run the same command again to go on") from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_full(workspace.folder) from error
            where = error.filename or workspace.folder
            hint = "mend what the system complains of and run the same command again: finished shards are kept"
            raise DiskError(f"{where}: {error.strerror or error}", hint=hint) from error


def _layout(config: Mapping[str, Any], options: Options) -> str:
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


def _open(source: str, revision: str | None, options: Options, limit: Target | None = None) -> Checkpoint:
    def check(config: Mapping[str, Any]) -> None:
        if not options.trust_remote_code:
            refuse_remote_code(config, source)
        if limit is not None:
            limit.check(config)
        # Before anything is fetched; of a folder, the target checks it.
        if not os.path.isdir(os.path.expanduser(source)):
            from mlxport.layouts.mlx_lm.opening import check_supported

            layout = _layout(config, options)
            replace(options, layout=layout)  # options that are not of this layout are refused
            if layout == "mlx-lm" or not _can_port(config):
                check_supported(config, f"{source}/config.json")

    return open_checkpoint(source, revision=revision, trust_remote_code=options.trust_remote_code, check_config=check)


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
    options = Options(trust_remote_code=trust_remote_code)
    checkpoint = _open(str(against), revision, options)
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
