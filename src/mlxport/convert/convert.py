"""``convert``: options → checkpoint → layout → plan → steps, into one folder that appears when it is whole."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any  # noqa: F401 (types of options are looked up where their function is)

from mlxport.convert.convert_report import MARGIN_BYTES, ConvertReport
from mlxport.convert.open_source import as_stored, foreseeing, need_reference, next_step, open_source, parts_left_out
from mlxport.convert.options import ConvertOptions, check_layout
from mlxport.convert.resolved_options import ResolvedOptions, resolve
from mlxport.convert.source_hashes import Hashes
from mlxport.convert.steps import State, run
from mlxport.convert.way_back import with_way_back
from mlxport.convert.without_torch import leave_torch_out
from mlxport.errors import Interrupted, UnsupportedError, system_errors
from mlxport.layouts.base import Layout
from mlxport.layouts.generated.language_layout import GENERATED_LM
from mlxport.layouts.left_out import absent_towers
from mlxport.layouts.table import AUTO, chosen, generates_instead, why_not_the_runtimes
from mlxport.options.keywords import with_keywords
from mlxport.output.fingerprint import fingerprint
from mlxport.output.plan import make_plan, parse_size
from mlxport.output.surroundings import check_surroundings, nothing_left_by_torch
from mlxport.output.workspace import absolute, check_destination, check_space, free_space, open_workspace, space_taken
from mlxport.progress import make_progress
from mlxport.run.kv import check_model
from mlxport.run.tasks.task_table import find_task
from mlxport.source.tokenizer_files import check_tokenizer_files, embedding_rows
from mlxport.types import Checkpoint, ModelPart, Plan

if TYPE_CHECKING:
    from mlxport.convert.calibration_step import Calibrating
    from mlxport.layouts.conversion import Conversion

__all__ = ["ConvertReport", "carry_out", "convert"]

# Of tasks whose result is vectors, which every rounding turns a little.
_EMBEDDING, _EMBEDDING_BITS = ("sentence-similarity", "feature-extraction"), 8


@with_keywords(ConvertOptions)
@system_errors()
@nothing_left_by_torch()
def convert(source: str | Path, destination: str | Path, options: ConvertOptions) -> ConvertReport:
    """Convert a Hugging Face checkpoint to a folder that mlx-lm loads, and prove it against PyTorch.

    Args:
        source: A folder or a hub id.
        destination: The output folder; it appears only when it is whole and verified.
        options: A keyword for each field.

    Raises:
        MlxportError: One of the tree in ``mlxport.errors``; nothing is left under ``destination``.
    """
    check_surroundings(source, destination)
    asked = resolve(options)
    target = absolute(destination)
    check_destination(target, str(source), asked.overwrite)
    need_reference(asked.verify)
    if asked.verify == "none":
        leave_torch_out(str(source), asked.layout)
    checkpoint = open_source(str(source), asked, foreseeing(asked))
    layout = chosen(asked.layout, checkpoint.config, checkpoint.tensors, cache=asked.cache, text_only=asked.text_only)
    check_layout(asked, layout)
    if layout.backwards:
        asked = with_way_back(asked, checkpoint)
    why = why_not_the_runtimes(checkpoint.config) if layout.needs_torch and not layout.backwards else ""
    with Hashes(checkpoint, start=not asked.dry_run) as hashes, next_step(checkpoint.config, str(source)):
        try:
            conversion, settled = opened(checkpoint, layout, replace(asked, layout=layout.name))
        except UnsupportedError as error:
            if asked.layout != AUTO or layout is GENERATED_LM or not generates_instead(error, checkpoint, asked.cache):
                raise
            layout, why = GENERATED_LM, error.message
            conversion, settled = opened(checkpoint, layout, replace(asked, layout=layout.name))
        task = find_task(checkpoint.root, checkpoint.config, layout)
        said = (*surprise(layout, why, asked.layout, task), *_advice(task, settled))
        conversion = replace(conversion, notes=(*said, *conversion.notes))
        return carry_out(conversion, str(source), checkpoint, target, layout, settled, hashes, task)


def surprise(layout: Layout, why: str, asked: str, task: str | None) -> tuple[str, ...]:
    """What to say where ``auto`` means a layout that brings code of its own: why, and what that can do."""
    if asked != AUTO or not layout.needs_torch:
        return ()
    if layout.not_generating is None:
        what = f"{layout.summary}: {layout.run_by}"
    else:
        run = f"mlxport run DST INPUT does its task, {task}; " if task else ""
        what, can = layout.not_generating[0], "call it with mlxport.load(DST)(...)"
        what = f"{what}: {run}{can}; mlxport generate and chat cannot run it"
    return (f"{why}, so the layout is {layout.name!r}, {what}",)


def _advice(task: str | None, options: ResolvedOptions) -> tuple[str, ...]:
    """What is to be said of the bits that were asked for, by what the model is for."""
    if options.quant is None or task not in _EMBEDDING or options.quant.spec.bits >= _EMBEDDING_BITS:
        return ()
    bits = options.quant.spec.bits
    return (
        f"{bits} bits turn the vectors of texts (MiniLM at 4: cosine 0.97); -q {_EMBEDDING_BITS} keeps them (0.9999)",
    )


def opened(checkpoint: Checkpoint, layout: Layout, options: ResolvedOptions) -> tuple[Conversion, ResolvedOptions]:
    """What will be written, and the options with what was chosen under a limit."""
    if options.limit is None:
        _check_report_tokenizer(checkpoint, options)
    if layout.needs_torch and layout.tokenizer:
        check_tokenizer_files(checkpoint, None)  # a capture takes minutes; again with the rows once these are known
    stored, said = as_stored(checkpoint, layout, options)
    conversion = layout.opens(stored, options)
    conversion = replace(conversion, notes=(*said, *conversion.notes))
    parts = parts_left_out(checkpoint, conversion, options)
    if options.limit is not None:
        conversion, options = _allocated(conversion, options)
        _check_report_tokenizer(checkpoint, options)
    notes = (*conversion.notes, *_notes_on_parts(checkpoint, parts, options))
    conversion = replace(conversion, left_out=parts, notes=notes)
    if not checkpoint.trust_remote_code and "auto_map" in conversion.config:  # of code that is not carried
        config = {key: value for key, value in conversion.config.items() if key != "auto_map"}
        conversion = replace(conversion, config=config)
    if options.kv is not None and conversion.model is not None:
        model = conversion.model
        remarks = check_model(model.skeleton(), options.kv, str(model.config.get("model_type")))
        conversion = replace(conversion, notes=(*conversion.notes, *remarks, options.kv.note()))
    return conversion, options


def _notes_on_parts(checkpoint: Checkpoint, parts: tuple[ModelPart, ...], options: ResolvedOptions) -> list[str]:
    """What is to be said where config and weights are not of the same parts, or nothing was there to leave out."""
    notes = []
    if absent := absent_towers(checkpoint.config, checkpoint.tensors):
        notes.append(
            f"config.json describes {', '.join(absent)}, of which the weights hold nothing: a text model alone"
        )
    if options.text_only and not parts:
        notes.append("--text-only changed nothing: every part of the checkpoint is in the output")
    return notes


def _check_report_tokenizer(checkpoint: Checkpoint, options: ResolvedOptions) -> None:
    """Refuse now, not at the end, a report for which there is no tokenizer."""
    if options.report:
        from mlxport.quality.text_windows import load_tokenizer

        load_tokenizer(checkpoint.root, trust_remote_code=checkpoint.trust_remote_code)


def _allocated(plain: Conversion, options: ResolvedOptions) -> tuple[Conversion, ResolvedOptions]:
    """The conversion with the settings that were chosen under a limit, and the options with them."""
    from mlxport.allocate.choose import find_allocation

    assert plain.model is not None and options.limit is not None
    checkpoint = plain.model.checkpoint
    check_tokenizer_files(checkpoint, None)  # again with the embedding's rows once these are known
    with make_progress(0, f"choosing bits for {checkpoint.name}", quiet=options.quiet) as progress:
        found = find_allocation(
            plain.model,
            options.limit,
            max_shard_size=options.max_shard_size,
            shard_by=options.shard_by,
            progress=progress,
        )
    options = replace(options, quant=found.request, dtype=found.dtype, allocation=found.report)
    if found.request is None:  # the model fits as it is: there is nothing to calibrate or to train
        options = replace(options, calibration=None, training=None)
    elif options.training is not None:
        options.training.check(found.request)
    return found.conversion, options


def carry_out(
    conversion: Conversion,
    source: str,
    checkpoint: Checkpoint,
    target: Path,
    layout: Layout,
    options: ResolvedOptions,
    hashes: Hashes,
    task: str | None = None,
) -> ConvertReport:
    """Plan and, unless it is a dry run, write, verify and publish.

    Args:
        conversion: What to write.
        source: The source as the user gave it.
        checkpoint: The opened source.
        target: The destination.
        layout: The output's.
        options: What was asked for.
        hashes: Of the source, being computed.
        task: What the model is for, None where nothing says.
    """
    calibrating = _calibrating(checkpoint, conversion, options)
    plan = _planned(conversion, layout, options, calibrating)
    shapes = {name: output.shape for name, output in conversion.program.outputs.items()}
    rows = embedding_rows(conversion.config, shapes) if layout.tokenizer else None
    remarks = check_tokenizer_files(conversion.files_of or checkpoint, rows) if layout.tokenizer else ()
    chosen = options.allocation.notes if options.allocation else ()
    notes = (*checkpoint.problems, *conversion.notes, *chosen, *remarks)
    report = ConvertReport(
        target, plan, notes, dry_run=options.dry_run, allocation=options.allocation, layout=layout.name
    )
    if options.dry_run:
        return replace(report, free_bytes=free_space(target))
    free = check_space(target, _disk_bytes(plan, checkpoint, options), space_taken(target))
    report = replace(report, free_bytes=free)
    reads_text = options.calibration is not None or options.training is not None
    known = fingerprint(checkpoint, conversion, plan, options.recorded(), reads_text)
    progress = make_progress(plan.nbytes, f"converting {checkpoint.name}", quiet=options.quiet)
    with open_workspace(target, known, options.overwrite, progress.message) as workspace:
        state = State(
            source=source, checkpoint=checkpoint, layout=layout, conversion=conversion, plan=plan, options=options,
            hashes=hashes, workspace=workspace, report=report, calibrating=calibrating, progress=progress,
            program=conversion.program, task=task,
        )  # fmt: skip
        try:
            with system_errors(workspace.folder):
                return run(state)
        except KeyboardInterrupt:
            finished = f"{len(workspace.done)} of {len(plan.shards)} shards are finished in {workspace.folder}"
            raise Interrupted(f"stopped: {finished}", hint="run the same command again to go on") from None


def _calibrating(checkpoint: Checkpoint, conversion: Conversion, options: ResolvedOptions) -> Calibrating | None:
    if options.calibration is None:
        return None
    from mlxport.convert.calibration_step import prepare

    return prepare(checkpoint, conversion, options.calibration)


def _planned(conversion: Conversion, layout: Layout, options: ResolvedOptions, calibrating: Calibrating | None) -> Plan:
    plan = make_plan(
        conversion.tensors(),
        max_bytes=sys.maxsize if layout.one_file else parse_size(options.max_shard_size),
        by=options.shard_by,
        dtype=conversion.dtype,
        parameters=conversion.parameters,
        quantized=conversion.quantized,
        kept=conversion.kept,
        dropped=conversion.program.unused(),
        left_out=conversion.left_out,
        working_bytes=conversion.working_bytes(),
        stem=layout.weights,
    )
    return replace(plan, calibration=calibrating.plan if calibrating is not None else None)


def _disk_bytes(plan: Plan, checkpoint: Checkpoint, options: ResolvedOptions) -> int:
    """The most that lies on the disk at once."""
    needed = plan.nbytes + MARGIN_BYTES + sum(path.stat().st_size for path in checkpoint.side_files)
    needed += (
        plan.nbytes if plan.calibration is not None else 0
    )  # what is calibrated lies beside the shards for a while
    if options.training is not None:
        needed += options.training.disk_bytes(max(shard.nbytes for shard in plan.shards), plan.parameters)
    return needed
