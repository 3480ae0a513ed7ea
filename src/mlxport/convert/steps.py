"""The steps of a conversion, in their order: functions over one state, from an open workspace to the published folder.

Which of them have something to do follows from the options and from what the layout says of itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport._version import __version__
from mlxport.convert.convert_report import ConvertReport
from mlxport.convert.resolved_options import ResolvedOptions
from mlxport.convert.source_hashes import Hashes
from mlxport.errors import NumericsError, VerificationError
from mlxport.layouts.base import Layout
from mlxport.layouts.left_out import PROCESSORS
from mlxport.output.record import make_record
from mlxport.output.workspace import RECORD, Workspace
from mlxport.progress import Progress, make_progress
from mlxport.source import hash_file
from mlxport.source.tiktoken_tokenizer import made_tokenizer
from mlxport.source.tokenizer_files import embedding_rows
from mlxport.source.written_code import not_remembered, remember
from mlxport.types import Checkpoint, Plan

if TYPE_CHECKING:
    from mlxport.convert.calibration_step import Calibrating
    from mlxport.layouts.conversion import Conversion
    from mlxport.output.shards import Written
    from mlxport.transform import Program

__all__ = ["STEPS", "State", "run"]

_WIDE = frozenset(("BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"))  # dtypes with values that float16 does not have
_CARD = "README.md"
RECIPE = "recipe.toml"  # of an allocation; --recipe takes it


@dataclass
class State:
    """One conversion under way.

    Attributes:
        source: The source as the user gave it.
        checkpoint: The opened source.
        layout: What the output is laid out for.
        conversion: What is written.
        plan: Into which files.
        options: What was asked for.
        hashes: Of the source, being computed.
        workspace: Where the output grows.
        report: What has been done so far.
        calibrating: What calibrating works on, None without it.
        progress: What to tell of it.
        program: What computes the tensors of the shards.
        task: What the model is for, None where nothing says.
        inputs: sha256 of the source's weight files, by name.
        carried: Names of the files beside weights, config, record and card.
        record: What steps add to the record at its end.
        shown: Shows the progress until it is closed.
    """

    source: str
    checkpoint: Checkpoint
    layout: Layout
    conversion: Conversion
    plan: Plan
    options: ResolvedOptions
    hashes: Hashes
    workspace: Workspace
    report: ConvertReport
    calibrating: Calibrating | None
    progress: Progress
    program: Program
    task: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    carried: set[str] = field(default_factory=set)
    record: dict[str, Any] = field(default_factory=dict)
    shown: ExitStack = field(default_factory=ExitStack)

    @property
    def folder(self) -> Path:
        """Where the output grows."""
        return self.workspace.folder

    @property
    def written(self) -> dict[str, Written]:
        """What is known of every shard."""
        return {shard.filename: self.workspace.done[shard.filename] for shard in self.plan.shards}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every output."""
        return {name: output.shape for name, output in self.conversion.program.outputs.items()}

    def reported(self, **done: Any) -> None:
        """Note in the report what has been done."""
        self.report = replace(self.report, **done)

    def warn(self, what: str) -> None:
        """Say what the user has to know, now, because the rest may take hours or fail, and in the report."""
        self.progress.message(f"warning: {what}")
        self.reported(warnings=(*self.report.warnings, what))


def calibrate(state: State) -> None:
    """Quantize by activations, where that was asked for; the shards then copy what it leaves in the workspace."""
    if state.calibrating is None or state.options.calibration is None:
        return
    from mlxport.convert.calibration_step import calibrated

    asked, progress = state.options.calibration, state.progress
    state.program, recorded = calibrated(state.calibrating, asked, state.conversion, state.folder, progress)
    state.record |= recorded
    progress.stage(f"converting {state.checkpoint.name}", state.plan.nbytes)


def write_shards(state: State) -> None:
    """Write every shard that is not recorded yet; a recorded one whose bytes differ is written again."""
    from mlxport.output.shards import write_shard

    workspace, progress, resumed = state.workspace, state.progress, []
    for shard in state.plan.shards:
        path = workspace.folder / shard.filename
        known = workspace.done.get(shard.filename)
        if known is not None:
            if path.is_file() and path.stat().st_size == known.nbytes and hash_file(path) == known.sha256:
                resumed.append(shard.filename)
                progress.advance(shard.nbytes)
                continue
            workspace.forget(shard.filename)
        framework = state.layout.framework
        written = write_shard(state.program, shard, path, advance=progress.advance, framework=framework)
        workspace.record(shard.filename, written)
    if resumed:
        progress.message(f"resumed: {len(resumed)} of {len(state.plan.shards)} shards were finished already")
    state.reported(resumed=tuple(resumed))


def check_findings(state: State) -> None:
    """Name values that are not finite; refuse an overflow that was not allowed."""
    from mlxport.output.blocks import Findings

    findings = Findings()
    for shard in state.written.values():
        findings.merge(shard.findings)
    if findings.nonfinite:
        total = sum(findings.nonfinite.values())
        state.warn(f"the source has {total} NaN or infinite values: {_counts(findings.nonfinite)}")
    if findings.overflowed:
        total = sum(findings.overflowed.values())
        message = f"{total} values overflow {state.plan.dtype}: {_counts(findings.overflowed)}"
        if not state.options.allow_overflow:
            hint = "use --dtype bfloat16 (or float32), or accept infinities with --allow-overflow"
            raise NumericsError(message, hint=hint)
        state.warn(message)
    state.reported(findings=findings)


def write_side_files(state: State) -> None:
    """Config, index, and every other file of the source that the output needs, byte for byte or made of it."""
    folder, plan = state.folder, state.plan
    write_json(folder / "config.json", state.conversion.config)
    weight_map = {tensor.name: shard.filename for shard in plan.shards for tensor in shard.tensors}
    metadata = {"total_size": plan.nbytes, "total_parameters": plan.parameters}
    write_json(folder / state.layout.index, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})
    made = state.conversion.write_files(folder)
    state.carried |= made
    for name in sorted(made):
        if name.endswith(".py") and not remember(folder / name):
            state.warn(not_remembered(name))
    if state.options.allocation is not None and (recipe := state.options.allocation.recipe()):
        (folder / RECIPE).write_text(recipe, encoding="utf-8")
        state.carried.add(RECIPE)
    source = state.conversion.files_of or state.checkpoint
    tokenizer = made_tokenizer(source.root) if state.layout.tokenizer else None
    replaced = tokenizer.replaced if tokenizer is not None else frozenset()
    for name, text in tokenizer.files.items() if tokenizer is not None else ():
        (folder / name).write_text(text, encoding="utf-8")
        state.carried.add(name)
    for path in source.side_files:
        relative = path.relative_to(source.root)
        untrusted = path.suffix == ".py" and not source.trust_remote_code
        alone = plan.left_out and path.name in PROCESSORS
        made_anew = path.name in replaced or str(relative) in made
        if made_anew or path.name == _CARD or untrusted or alone or not state.layout.carries(relative):
            continue
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / relative)
        state.carried.add(str(relative))


def distill(state: State) -> None:
    """Train scales and biases, where that was asked for; the shards are those of the workspace afterwards."""
    if state.options.training is None:
        return
    from mlxport.distill.resumable import distill_output

    assert state.conversion.model is not None, "a layout without a model to train refuses the option"
    state.progress.stage("distilling", 0)
    calibration = state.options.calibration
    distilled = distill_output(
        state.workspace,
        state.conversion.model.at("auto"),
        state.conversion.config,
        state.options.training,
        text=calibration.text if calibration is not None else None,
        say=state.progress.message,
    )
    state.progress.message(distilled.summary())
    state.reported(distilled=distilled)


def measure_damage(state: State) -> None:
    """What calibrating or training left of the damage that was predicted when bits were chosen."""
    allocation, options = state.options.allocation, state.options
    done = [word for word, asked in (("calibrated", options.calibration), ("distilled", options.training)) if asked]
    if allocation is None or allocation.judging is None or not done:
        return
    from mlxport.convert.measured_damage import remeasured

    state.progress.stage("measuring the output", 0)
    assert state.conversion.model is not None, "a layout without a model to measure refuses a limit"
    found = remeasured(allocation, state.conversion.model, state.folder, " and ".join(done), state.layout)
    state.options = replace(options, allocation=found)
    state.reported(allocation=found)


def hash_source(state: State) -> None:
    """Wait for the hashes of the source."""
    state.progress.stage("hashing the source", 0)
    state.inputs = state.hashes.result()


def check_activations(state: State) -> None:
    """Find what the model computes beyond float16; refuse it where the cast is ours, unless it was allowed."""
    if state.plan.dtype != "float16" or state.conversion.model is None:
        return
    cast = any(ref.dtype in _WIDE for ref in state.checkpoint.tensors.values())
    if not cast and state.options.verify == "none":
        return
    from mlxport.parity.overflow import largest_activations

    state.progress.stage("looking for activations that overflow", 0)
    config, trust = state.conversion.config, state.checkpoint.trust_remote_code
    rows = embedding_rows(config, state.shapes) or 1
    try:
        found = largest_activations(state.folder, config, rows, trust_remote_code=trust)
    except VerificationError as error:
        state.warn(f"activations were not checked for overflow: {error.message}")
        return
    if found.beyond and cast and not state.options.allow_overflow:
        hint = "use --dtype bfloat16 (or float32), or accept infinities with --allow-overflow"
        raise NumericsError(found.summary(), hint=hint)
    if found.summary():
        state.warn(f"{found.summary()}; --dtype bfloat16 holds them")
    state.reported(activations=found)


def verify(state: State) -> None:
    """Compare with the original as the layout says; raises VerificationError where the output differs."""
    from mlxport.convert.verify_written import Verifying, verify_written

    trained = frozenset(state.report.distilled.modules if state.report.distilled is not None else ())
    work = Verifying(
        state.folder, state.layout, state.checkpoint, state.conversion, state.options.verify, trained,
        state.progress.message, state.task,
    )  # fmt: skip
    found = verify_written(work, state.progress)
    state.reported(parity=found.parity, tokenizer=found.tokenizer, not_verified=found.missing)


def write_record(state: State) -> None:
    """The record and the model card."""
    from mlxport.output.card import model_card
    from mlxport.run.tasks.task_table import task_usage

    report, options, layout = state.report, state.options, state.layout
    # Equal conversions leave equal records: how long it took stays out. What is left out, the plan has.
    parity = (
        {k: v for k, v in report.parity.to_json().items() if k not in ("seconds", "left_out")}
        if report.parity
        else None
    )
    record = make_record(
        state.source,
        state.checkpoint,
        state.plan,
        options=options.recorded(),
        inputs=state.inputs,
        written=state.written,
        notes=report.notes,
        parity=parity,
        tokenizer=report.tokenizer.to_json() if report.tokenizer else None,
        not_verified=report.not_verified,
        distilled=report.distilled.to_json() if report.distilled else None,
        activations=report.activations.to_json() if report.activations else None,
        generation=options.kv.options() if options.kv is not None else None,
        allocation=options.allocation.to_json() if options.allocation else None,
    )
    task = state.task
    write_json(state.folder / RECORD, {**record, **state.record, **({"task": task} if task else {})})
    usage = layout.usage_of(state.checkpoint.config)
    usage = task_usage(task) + usage if task and layout.not_generating and not layout.backwards else usage
    card = model_card(
        state.checkpoint, state.plan, parity, __version__, usage=usage, task=task or "", library=layout.library
    )
    (state.folder / _CARD).write_text(card, encoding="utf-8")


def finish_files(state: State) -> None:
    """What the layout makes of the finished weights."""
    files, fields = state.conversion.finish_files(state.folder)
    state.carried |= files
    if fields:
        write_json(state.folder / "config.json", {**state.conversion.config, **fields})


def measure_quality(state: State) -> None:
    """Write the quality report, where it was asked for."""
    if not state.options.report:
        return
    from mlxport.quality.make_report import make_report, named_or_here
    from mlxport.quality.report_files import write_report

    with make_progress(0, f"measuring {state.checkpoint.name}", quiet=state.options.quiet) as progress:
        quality = make_report(
            state.folder,
            state.checkpoint,
            name=state.workspace.destination.name,
            source=state.source,
            same=True,
            machine=named_or_here(state.options.report_device),
            trust_remote_code=state.checkpoint.trust_remote_code,
            on_progress=progress.message,
        )
    state.carried |= {path.name for path in write_report(quality, state.folder)}
    state.reported(quality=quality)


def publish(state: State) -> None:
    """Put the folder where it belongs, without what was needed on the way only."""
    keep = {*state.written, *state.carried, "config.json", state.layout.index, RECORD, _CARD}
    state.workspace.publish(keep, overwrite=state.options.overwrite)


def check_source(state: State) -> None:
    """Refuse a source that changed meanwhile, once the last byte of it has been read."""
    state.hashes.refuse_changes()


def end_progress(state: State) -> None:
    """What comes after the comparison is quick, or shows progress of its own."""
    state.shown.close()


STEPS: tuple[Callable[[State], None], ...] = (
    calibrate,
    write_shards,
    check_findings,
    write_side_files,
    distill,
    measure_damage,
    hash_source,
    check_activations,
    verify,
    end_progress,
    write_record,
    finish_files,
    measure_quality,
    check_source,
    publish,
)


def run(state: State) -> ConvertReport:
    """All steps; what they did."""
    with state.shown:
        state.shown.enter_context(state.progress)
        try:
            for step in STEPS:
                step(state)
        except Exception:
            state.hashes.refuse_changes()  # where the source changed, that is the error to show, not what came of it
            raise
    return state.report


def _counts(found: Mapping[str, int], most: int = 8) -> str:
    names = [f"{name} ({count})" for name, count in list(found.items())[:most]]
    more = f" and {len(found) - most} more tensors" if len(found) > most else ""
    return ", ".join(names) + more


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` as the other JSON files of the output are written."""
    path.write_text(json.dumps(data, indent=4, ensure_ascii=True), encoding="utf-8")
