"""What of a model fits a machine, and how fast it generates: from config and headers alone."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.errors import UnsupportedError, UsageError
from mlxport.fit.caches import PREFILL_STEP, quantized_from
from mlxport.fit.fit_report import FitReport, FitRow, recommended
from mlxport.fit.footprint import Footprint
from mlxport.fit.generation_rate import tokens_per_second
from mlxport.fit.hardware import Machine, known_machines, named_machine, this_machine
from mlxport.fit.liveness import METAL
from mlxport.fit.picture_planning import PlannedWhole, parsed_size, plan_pictures
from mlxport.fit.quant_settings import Setting, SettingWeights, measure, settings
from mlxport.fit.task_plan_report import TaskPlan
from mlxport.fit.task_planning import plan_task, task_layout
from mlxport.layouts.left_out import left_out, said_before
from mlxport.layouts.table import AUTO, chosen, layouts, refuse_unknown_code, way_out
from mlxport.model.both_texts import has_encoder
from mlxport.model_config import ModelConfig
from mlxport.quant import is_linear, make_spec, plain_bits
from mlxport.run.kv import KVQuant
from mlxport.source import open_checkpoint
from mlxport.types import CalibrationPlan, Checkpoint

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion, TracedModel

__all__ = ["chosen_context", "plan_for", "planned_dtype"]

DEFAULT_CONTEXT = 4096
# Where a config names no limit: further than anyone has asked for. Contexts are found to this many tokens.
_FAR = 1 << 20
_NEAR = 64
_SIXTEEN = ("bfloat16", "float16")
_PACKED = "4"
# From this many tensors on (experts that are stored one by one) the graph of their conversion, which a plan needs only
# to refuse what convert refuses too, would take gigabytes.
_MANY_TENSORS = 20_000


def plan_for(
    source: str | Path,
    *,
    device: str | None = None,
    context: int | None = None,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    dtype: str = "auto",
    image_size: str | None = None,
    macos: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> FitReport | TaskPlan:
    """Say which conversions of a model fit a machine, with what context, and how fast they generate.

    Of a model of pictures and text the plan is of the whole: its tower, a picture's tokens, and what reading it takes.
    Of a model that is run for another task than writing (labels, vectors, speech) it says what the model becomes, what
    runs it, and what one input takes: a text of ``context`` tokens, a picture, 30 seconds of sound.

    Nothing of the weights is read; of a hub repository only JSON files and headers are fetched.

    Args:
        source: A folder or a hub id.
        device: A machine such as ``"M2 8GB"``; None is the Mac that this runs on.
        context: Tokens of prompt and answer together; by default 4096, or the model's own limit if that is less.
        kv_bits: Bits of a quantized key-value cache, as of ``mlx_lm.generate``.
        kv_group_size: Its group size.
        dtype: Of what is not quantized: as of ``convert``, but ``auto`` makes float32 checkpoints bfloat16.
        image_size: Width and height of a picture in pixels, as ``"1024x768"``, which it is by default.
        macos: Major version of macOS; before 26 less memory was left to the GPU of larger machines.
        revision: Branch, tag or commit of a hub repository.
        trust_remote_code: Plan for a checkpoint that brings code of its own; it is not run.

    Raises:
        UsageError: No such machine, or a context that the model was not made for.
        SourceError: The source cannot be opened; see :func:`mlxport.source.open_checkpoint`.
        UnsupportedError: mlx-lm cannot run this model.
    """
    machine = this_machine() if device is None else named_machine(device, macos)
    _check_numbers(context, kv_bits, kv_group_size)
    size = parsed_size(image_size)

    def check(config: Mapping[str, Any]) -> None:
        from mlxport.layouts.mlx_lm.normalize import ConfigRefused
        from mlxport.layouts.mlx_lm.opening import check_supported

        refuse_unknown_code(config, str(source), trust_remote_code)
        try:
            if (layout := task_layout(config)) is not None:
                layout.check(config, f"{source}/config.json")
            elif _own_source(config) is None:
                check_supported(config, f"{source}/config.json")
        except UnsupportedError as error:
            if isinstance(error.__cause__, ConfigRefused):
                message = f"{error.message}: there is no model of mlx-lm to plan for"
                raise UnsupportedError(message, hint=way_out(config, str(source))) from error
            raise
        chosen_context(context, ModelConfig(config).context_length)

        if kv_bits is not None:
            _check_kv(config)

    checkpoint = open_checkpoint(source, revision=revision, check_config=check, headers_only=True)
    whole = next((it for it in layouts() if it.whole and it.claims(checkpoint.config, checkpoint.tensors)), None)
    if whole is None and image_size is not None:
        raise UsageError("--image-size: for models of pictures and text", hint="leave it out")
    if (layout := task_layout(checkpoint.config)) is not None:
        tokens = chosen_context(context, checkpoint.model_config.context_length)
        return plan_task(str(source), checkpoint, layout, machine, tokens=tokens, dtype=dtype)
    opened, conversion, asked, notes = _open(checkpoint, dtype)
    parts = left_out(checkpoint, conversion.program)
    lengths = (checkpoint.model_config.context_length, ModelConfig(conversion.config).context_length)
    limit = min((length for length in lengths if length is not None), default=None)
    tokens = chosen_context(context, limit)
    footprint = Footprint(_packed(opened, _PACKED), METAL, kv_bits, kv_group_size)
    shares = footprint.read_shares(tokens)
    name = conversion.dtype if asked == dtype else asked
    # A quantized cache is for the text model alone, as convert has it.
    seen = plan_pictures(checkpoint, whole, name, size) if whole is not None and kv_bits is None else None
    if seen is not None:  # what becomes of the config of the text model alone is of no concern
        notes = tuple(note for note in notes if note not in conversion.notes)
    parameters = conversion.parameters if seen is None else seen.parameters
    case = _Case(machine, name, parameters, tokens, limit, footprint, opened, seen)
    model, rows, calibration = opened.skeleton(), [], None
    for setting in settings():
        weights = measure(model, setting, shares)
        rows.append(_row(setting, weights if seen is None else seen.weights(setting, weights), case))
        if setting.quantize == _PACKED and seen is None:
            calibration = _calibration(checkpoint, conversion, weights, limit)
    report = FitReport(
        str(source),
        machine,
        tokens,
        limit,
        kv_bits,
        "" if asked == "auto" else asked,
        tuple(rows),
        notes=(
            *(said_before(parts, whole) if seen is None else seen.pictures.notes_at(tokens)),
            *(*notes, *_kv_notes(kv_bits, tokens), *_reading_notes(model, tokens)),
        ),
        left_out=parts if seen is None else (),
        calibration=calibration,
        pictures=None if seen is None else seen.pictures,
    )
    ordered = recommended(report)
    return replace(ordered, **_otherwise(ordered, footprint, macos))


def _check_numbers(context: int | None, kv_bits: int | None, kv_group_size: int) -> None:
    if context is not None and context < 2:
        raise UsageError(f"--context {context}: a context holds at least 2 tokens", hint="leave it out for 4096")
    KVQuant(plain_bits()[0] if kv_bits is None else kv_bits, kv_group_size)  # refuses what does not exist


def _check_kv(config: Mapping[str, Any]) -> None:
    """Refuse a quantized cache where ``convert`` refuses it."""
    layout = chosen(AUTO, config)
    for refusal in layout.refuses if layout.own_source or task_layout(config) is not None else ():
        if "kv_bits" in refusal.options:
            raise UsageError(refusal.message.format(given="--kv-bits"), hint=refusal.hint)


def chosen_context(asked: int | None, limit: int | None) -> int:
    """The context to plan for: what is asked for, else a usual one within the model's limit.

    Raises:
        UsageError: The model was not made for so many tokens.
    """
    if asked is None:
        return max(2, min(DEFAULT_CONTEXT, limit or DEFAULT_CONTEXT))
    if limit is not None and asked > limit:
        raise UsageError(
            f"--context {asked}: the model was made for at most {limit} tokens (config.json, max_position_embeddings)",
            hint=f"give --context {limit} or less",
        )
    return asked


def _calibration(
    checkpoint: Checkpoint, conversion: Conversion, weights: SettingWeights, limit: int | None
) -> CalibrationPlan | None:
    """What calibrating at four bits takes, given the weights under that setting; None where nothing can be."""
    from mlxport.calibrate.estimate import estimate_default

    paths = [path for path, _, part in (name.rpartition(".") for name in weights.tensors) if part == "scales"]
    if not paths:
        return None
    return estimate_default(checkpoint, conversion.program, dict.fromkeys(paths, make_spec(bits=4)), limit)


def _packed(opened: TracedModel, quantize: str | None) -> Any:
    """The model as a setting has it, or as it is where the setting does not apply.

    What Metal holds at once is that of packed weights: its batches of work end at a number of elements, of which those
    have few. Published runs take as much with other bits, and without quantization.
    """
    from mlxport.layouts.quantizing import Built
    from mlxport.layouts.quantizing import quantize as pack

    model, request = opened.skeleton(), Setting(quantize).request()
    try:
        if request is not None:
            pack(model, {}, request, Built({}))
    except Exception:  # an architecture's own rules; the row of that setting tells what they say
        return opened.skeleton()
    return model


def _own_source(config: Mapping[str, Any]) -> Callable[[Checkpoint, str], TracedModel] | None:
    """What opens a model that ``convert`` writes source of its own for, on mlx-lm's caches; None for others."""
    layout = chosen(AUTO, config)
    return layout.traces if layout.own_source else None


def _open(checkpoint: Checkpoint, dtype: str) -> tuple[TracedModel, Conversion, str, tuple[str, ...]]:
    """mlx-lm's model in the dtype that is planned for, how it is converted, --dtype, and remarks."""
    from mlxport.layouts.mlx_lm.opening import open_model

    if (traces := _own_source(checkpoint.config)) is not None:
        model = traces(checkpoint, dtype)
    else:
        here = all(path.is_file() for path in checkpoint.weight_files)
        many = len(checkpoint.tensors) > _MANY_TENSORS
        model = open_model(checkpoint, dtype=dtype, headers_only=not here, shapes_only=many)
    conversion = model.plain
    asked = planned_dtype(dtype, conversion)
    notes = (*checkpoint.problems, *conversion.notes)
    if asked != dtype:
        notes = (*notes, f"the checkpoint holds {conversion.dtype}: planned with --dtype {asked}")
    return model.at(asked), conversion, asked, notes


def planned_dtype(dtype: str, conversion: Conversion) -> str:
    """``dtype``; but where it is ``auto`` and the checkpoint holds wider floats, 16 bits: a machine is to be filled."""
    wide = conversion.dtype not in _SIXTEEN and not conversion.quantized
    return _SIXTEEN[0] if dtype == "auto" and wide else dtype


@dataclass(frozen=True, slots=True)
class _Case:
    """What all rows have in common."""

    machine: Machine
    dtype: str
    parameters: int
    context: int
    limit: int | None
    footprint: Footprint
    opened: TracedModel
    whole: PlannedWhole | None = None
    _operations: dict[str | None, int] = field(default_factory=dict)

    def operations(self, setting: Setting) -> int:
        """Operations of a step under a setting: they differ by whether there are biases, not by bits."""
        request = setting.request()
        kind = None if request is None else _PACKED if is_linear(request.spec.mode) else "mxfp4"
        if not self._operations:
            self._operations[_PACKED] = self.footprint.operations(self.context)
        if kind not in self._operations:
            footprint = self.footprint
            other = Footprint(_packed(self.opened, kind), METAL, footprint.kv_bits, footprint.kv_group_size)
            self._operations[kind] = other.operations(self.context)
        return self._operations[kind]


def _row(setting: Setting, weights: SettingWeights, case: _Case) -> FitRow:
    name, context = setting.name(case.dtype), case.context
    if weights.problem:
        return FitRow(name, setting.quantize, problem=weights.problem)
    need = case.footprint.at(context)
    budget = case.machine.gpu_bytes - weights.nbytes
    # While a tower reads, there is no cache yet.
    tower = 0 if case.whole is None else case.whole.pictures.workspace_bytes or 0
    need = replace(need, peak=max(need.peak, tower))
    longest = longest_context(case.footprint, budget, case.limit) if tower <= budget else 0
    return FitRow(
        name,
        setting.quantize,
        bits_per_weight=weights.nbytes * 8 / max(case.parameters, 1),
        disk_bytes=weights.nbytes,
        cache_bytes=need.cache,
        workspace_bytes=need.peak - need.cache,
        spare_bytes=budget - need.peak,
        # between two computed lengths: never against what was computed at this very context
        longest_context=max(longest, context) if need.peak <= budget else min(longest, context - 1),
        tokens_per_second=tokens_per_second(case.machine, weights.read + need.cache, case.operations(setting)),
    )


def longest_context(footprint: Footprint, budget: int, limit: int | None) -> int:
    """The most tokens whose needs stay within ``budget`` bytes, 0 where not even a short prompt does.

    Needs are computed at some lengths, from one piece of a prompt on at those that double, and taken to grow evenly
    between two of them; which two is found by halving, because computing them takes its time.
    """
    lengths = _lengths(limit or _FAR)

    def over(length: int) -> bool:
        return footprint.at(length).peak > budget

    if over(lengths[0]):  # the ends first: for most settings nothing fits, or everything
        return 0
    if not over(lengths[-1]):
        return lengths[-1]
    fits = bisect.bisect_left(lengths, True, key=over)
    low, high = lengths[fits - 1], lengths[fits]
    before, after = footprint.at(low).peak, footprint.at(high).peak
    return (low + (high - low) * (budget - before) // max(after - before, 1)) // _NEAR * _NEAR


def _lengths(last: int) -> list[int]:
    """Contexts at which needs are computed, up to ``last``."""
    lengths = [_NEAR, 8 * _NEAR]
    while lengths[-1] < last:
        lengths.append(max(2 * lengths[-1], PREFILL_STEP))
    return [*(length for length in lengths if length < last), last]


def _kv_notes(kv_bits: int | None, context: int) -> tuple[str, ...]:
    if kv_bits is None or context > quantized_from():
        return ()
    return (f"mlx-lm quantizes the cache from {quantized_from():,} tokens on, so --kv-bits saves nothing here",)


def _reading_notes(model: Any, context: int) -> tuple[str, ...]:
    """What the context means where an encoder reads the prompt."""
    if not has_encoder(model):
        return ()
    return (f"{context:,} tokens are read by the encoder, and as many are written",)


def _otherwise(report: FitReport, footprint: Footprint, macos: int | None) -> dict[str, Any]:
    """What would fit where nothing does: the smallest machines, and the longest context of the smallest setting."""
    usable = [row for row in report.rows if not row.problem]
    if not usable or any(row.fits for row in usable):
        return {}
    good = [row for row in usable if row.keeps_four_bits] or usable
    smallest = min(good, key=lambda row: row.disk_bytes)
    needed = smallest.memory_bytes
    larger = [machine for machine in known_machines(macos) if machine.gpu_bytes >= needed]
    least = min((machine.memory_gb for machine in larger), default=0)
    shorter = max(usable, key=lambda row: row.longest_context)
    return {
        "larger_machines": tuple(machine.name for machine in larger if machine.memory_gb == least),
        "larger_setting": smallest.name,
        "shorter_context": shorter.longest_context,
        "shorter_setting": shorter.name if shorter.longest_context else "",
    }
