"""``mlxport report``: measure a converted folder against its original, and write the page."""

from __future__ import annotations

import gc
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxport.errors import MlxportError, UsageError
from mlxport.fit.hardware import Machine
from mlxport.model.memory import available_memory
from mlxport.model.texts import heldout_text
from mlxport.output.record import read_record, versions
from mlxport.progress import make_progress
from mlxport.quality.baseline import rounded_to_nearest, rounds_to_nearest
from mlxport.quality.divergence import Quality, compare_each, windows_for
from mlxport.quality.module_errors import ModuleError, layer_errors, output_errors, weight_errors
from mlxport.quality.opened import Opened, open_original, open_output, place
from mlxport.quality.original import find_original
from mlxport.quality.quality_report import QualityReport
from mlxport.quality.report_files import write_report
from mlxport.quality.samples import samples
from mlxport.quality.speed import Predicted, Speed, measured, predicted
from mlxport.quality.text_windows import LEAST_TOKENS, read_text
from mlxport.quality.written_windows import written_windows
from mlxport.run.kv import recorded_kv
from mlxport.types import Checkpoint

__all__ = ["make_report", "named_or_here", "quality_report"]


def quality_report(
    output: str | Path,
    against: str | Path | None = None,
    *,
    folder: str | Path | None = None,
    device: str | None = None,
    text: str | Path | None = None,
    tokens: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    quiet: bool = True,
) -> QualityReport:
    """Measure what a converted model lost, and write ``report.html`` and ``report.json``.

    Args:
        output: A folder that mlx-lm loads, or a hub id of one.
        against: The original: a folder or a hub id; by default what the output's record names, if it has not changed.
        folder: Where to write; by default into ``output``.
        device: A Mac to predict the speed for, such as ``"M2 8GB"``; by default this machine, where it is one.
        text: A file of text to measure on; by default the built-in text.
        tokens: Most tokens of the text; by default 4,096, and less for models that are slow here.
        revision: Branch, tag or commit of a hub repository that ``against`` names.
        trust_remote_code: Allow code of the checkpoint to run (a tokenizer's).
        quiet: Show no progress.

    Raises:
        UsageError: Not an original of this output, no such device, or a text that is none or too short.
        TokenizerError: Neither text nor samples can be given to a model without a tokenizer.
        MlxportError: What else is wrong with either folder; nothing was written.
    """
    if tokens is not None and tokens <= LEAST_TOKENS:
        raise UsageError(f"--tokens {tokens}: figures of so few say nothing", hint=f"give more than {LEAST_TOKENS}")
    machine = named_or_here(device)
    words = None if text is None else read_text(text)
    if folder is None and not os.path.isdir(os.path.expanduser(output)):
        raise UsageError(f"{output} is no folder to write a report into", hint="say where with --output FOLDER")
    with make_progress(0, f"measuring {Path(output).name}", quiet=quiet) as progress:
        report = make_report(
            output,
            against,
            source=None if against is None else str(against),
            machine=machine,
            text=words,
            text_name="" if text is None else Path(text).name,
            tokens=tokens,
            revision=revision,
            trust_remote_code=trust_remote_code,
            on_progress=progress.message,
        )
    page, data = write_report(report, Path(output if folder is None else folder).expanduser())
    return replace(report, page=page, data=data)


def named_or_here(device: str | None) -> Machine | None:
    """The machine of that name; without one, the Mac that this runs on, None where it is none."""
    from mlxport.fit import named_machine, this_machine

    if device is not None:
        return named_machine(device)
    try:
        return this_machine()
    except UsageError:
        return None


def make_report(
    output: str | Path,
    original: str | Path | Checkpoint | None = None,
    *,
    name: str | None = None,
    source: str | None = None,
    same: bool = False,
    machine: Machine | None = None,
    text: str | None = None,
    text_name: str = "",
    tokens: int | None = None,
    memory_limit: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> QualityReport:
    """Measure an output against its original.

    Args:
        output: A folder that mlx-lm loads.
        original: A folder, a hub id or an opened checkpoint; by default what the output's record names, if its
            weights are still those that were converted.
        name: What to call the output's folder; by default its name.
        source: What to call the original; by default its repository, or its folder's path.
        same: The original is known to be what was converted; otherwise its files are hashed.
        machine: A Mac to predict for.
        text: What both read; by default the built-in text.
        text_name: What to call it.
        tokens: As of ``compare``.
        memory_limit: As of ``compare``.
        revision: Branch, tag or commit of a hub repository.
        trust_remote_code: Allow code of the checkpoint to run (a tokenizer's).
        on_progress: Called with a line for each step.

    Raises:
        MlxportError: As ``compare`` says; and UsageError where the recorded source is gone or has changed.
    """
    say = on_progress or (lambda _: None)
    two = open_output(output, trust_remote_code=trust_remote_code)
    checkpoint, notes = find_original(
        two.folder, original, revision=revision, same=same, trust_remote_code=trust_remote_code, on_progress=say
    )
    one = open_original(checkpoint)
    ids, remarks = windows_for(one, two, text, tokens)
    place(one, two, memory_limit)
    ids, more = written_windows(one, ids)
    quality, baseline = _figures(one, two, checkpoint, ids, memory_limit, say)
    say("comparing hidden states")
    layers = layer_errors(one, two, ids[0])
    outputs = output_errors(one, two, ids[0])
    say("comparing what both write")
    written, left_out = samples(one, two, text)
    say("comparing weights")
    modules = weight_errors(one, two, outputs)
    parameters = two.parameters
    context = min((side.context for side in (one, two) if side.context), default=None)
    folder, tensors, start = two.folder, two.stored_nbytes, one.start
    del one, two  # the speed is measured with the memory to itself
    gc.collect()
    mx.clear_cache()
    speed, slow = _speed(folder, ids[0], start, context, tensors, memory_limit, say)
    foretold, unknown = _predicted(folder, machine, context, say)
    measured_text = heldout_text() if text is None else text
    return QualityReport(
        name=checkpoint.name,
        folder=name or folder.resolve().name,
        source=source or checkpoint.location,
        parameters=parameters,
        nbytes=tensors,
        source_nbytes=checkpoint.nbytes,
        quantization=_settings(modules),
        quality=quality,
        baseline=baseline,
        layers=layers,
        modules=modules,
        samples=written,
        speed=speed,
        predicted=foretold,
        text={
            "name": text_name or "the built-in text: prose, code and some thirty languages",
            "bytes": len(measured_text.encode("utf-8", "replace")),
            "sha256": hashlib.sha256(measured_text.encode("utf-8", "replace")).hexdigest(),
        },
        provenance=_provenance(folder, checkpoint),
        notes=tuple(dict.fromkeys([*notes, *remarks, *more, *quality.notes, *left_out, *slow, *unknown])),
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def _figures(
    original: Opened,
    output: Opened,
    checkpoint: Checkpoint,
    ids: list[Any],
    memory_limit: int | None,
    say: Callable[[str], None],
) -> tuple[Quality, Quality | None]:
    """Of the output, and of the original rounded to nearest at the output's bits where that is something else."""
    rounded = None if rounds_to_nearest(read_record(output.folder)) else rounded_to_nearest(checkpoint, output)
    if rounded is None:
        return compare_each(original, [output], ids, say)[0], None
    place(original, rounded, memory_limit)
    quality, baseline = compare_each(original, [output, rounded], ids, say)
    return quality, baseline


def _settings(modules: tuple[ModuleError, ...]) -> tuple[tuple[str, int], ...]:
    """How many matrices are stored how."""
    names = (f"{m.mode} {m.bits} bits, group size {m.group_size}" if m.group_size else m.mode for m in modules)
    return tuple(Counter(names).most_common())


def _speed(
    folder: Path,
    ids: Any,
    start: int,
    context: int | None,
    nbytes: int,
    memory_limit: int | None,
    say: Callable[[str], None],
) -> tuple[Speed | None, tuple[str, ...]]:
    """A short run in the stored precision, where the weights fit."""
    from mlxport.run.load import load_model

    limit = available_memory() * 3 // 4 if memory_limit is None else memory_limit
    if nbytes > limit:
        return None, ("the speed was not measured: the output does not fit in the memory of this machine",)
    say("measuring the speed")
    try:
        model, _ = load_model(folder)
        kv = recorded_kv(folder)
        return measured(model, ids, context, kv, start), () if kv is None else (kv.note(),)
    except (MlxportError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        return None, (f"the speed was not measured: {type(error).__name__}: {' '.join(str(error).split())[:200]}",)
    finally:
        mx.clear_cache()


def _predicted(
    folder: Path, machine: Machine | None, context: int | None, say: Callable[[str], None]
) -> tuple[Predicted | None, tuple[str, ...]]:
    if machine is None:
        return None, ()
    say(f"planning for {machine.name}")
    try:
        return predicted(folder, machine, limit=context, kv=recorded_kv(folder)), ()
    except MlxportError as error:
        return None, (f"nothing is predicted for {machine.name}: {error.message}",)


def _provenance(folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    record = read_record(folder)

    def section(*path: str) -> dict[str, Any]:
        """A part of the record, which may hold anything."""
        found: Any = record
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    return {
        "versions": versions(),
        "made_with": section("versions"),
        "revision": checkpoint.revision,
        "source_files": section("source", "files"),
        "output_files": section("output", "files"),
        "options": section("options"),
        "verified": record.get("verified") is True,
    }
