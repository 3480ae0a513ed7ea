"""What of a model fits a machine, and how fast it generates: from config and headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.errors import UsageError
from mlxport.fit.caches import PREFILL_STEP, quantized_from
from mlxport.fit.fit_report import FitReport, FitRow, recommended
from mlxport.fit.footprint import Footprint
from mlxport.fit.hardware import Machine, decode_efficiency, known_machines, named_machine, this_machine
from mlxport.fit.liveness import METAL
from mlxport.fit.quant_settings import Setting, SettingWeights, measure, settings
from mlxport.layouts.table import refuse_unknown_code
from mlxport.model_config import ModelConfig
from mlxport.quant import make_spec, plain_bits
from mlxport.run.kv import KVQuant
from mlxport.source import open_checkpoint
from mlxport.types import CalibrationPlan, Checkpoint

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion

__all__ = ["chosen_context", "plan_for", "planned_dtype"]

DEFAULT_CONTEXT = 4096
# Where a config names no limit: further than anyone has asked for. Contexts are found to this many tokens.
_FAR = 1 << 20
_NEAR = 64
_SIXTEEN = ("bfloat16", "float16")


def plan_for(
    source: str | Path,
    *,
    device: str | None = None,
    context: int | None = None,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    dtype: str = "auto",
    macos: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> FitReport:
    """Say which conversions of a model fit a machine, with what context, and how fast they generate.

    Nothing of the weights is read; of a hub repository only JSON files and headers are fetched.

    Args:
        source: A folder or a hub id.
        device: A machine such as ``"M2 8GB"``; None is the Mac that this runs on.
        context: Tokens of prompt and answer together; by default 4096, or the model's own limit if that is less.
        kv_bits: Bits of a quantized key-value cache, as of ``mlx_lm.generate``.
        kv_group_size: Its group size.
        dtype: Of what is not quantized: as of ``convert``, but ``auto`` makes float32 checkpoints bfloat16.
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

    def check(config: Mapping[str, Any]) -> None:
        from mlxport.layouts.mlx_lm.opening import check_supported

        if not trust_remote_code:
            refuse_unknown_code(config, str(source))
        check_supported(config, f"{source}/config.json")
        chosen_context(context, ModelConfig(config).context_length)

    checkpoint = open_checkpoint(source, revision=revision, check_config=check, headers_only=True)
    model, conversion, asked, notes = _open(checkpoint, dtype)
    name, parameters = conversion.dtype if asked == dtype else asked, conversion.parameters
    limit = checkpoint.model_config.context_length
    tokens = chosen_context(context, limit)
    footprint = Footprint(model, METAL, kv_bits, kv_group_size)
    shares = footprint.read_shares(tokens)
    rows, calibration = [], None
    for setting in settings():
        weights = measure(model, setting, shares)
        rows.append(_row(setting, weights, name, parameters, machine, footprint, tokens, limit))
        if setting.quantize == "4":
            calibration = _calibration(checkpoint, conversion, weights, limit)
    report = FitReport(
        str(source),
        machine,
        tokens,
        limit,
        kv_bits,
        "" if asked == "auto" else asked,
        tuple(rows),
        notes=(*notes, *_kv_notes(kv_bits, tokens)),
        calibration=calibration,
    )
    ordered = recommended(report)
    return replace(ordered, **_otherwise(ordered, footprint, macos))


def _check_numbers(context: int | None, kv_bits: int | None, kv_group_size: int) -> None:
    if context is not None and context < 2:
        raise UsageError(f"--context {context}: a context holds at least 2 tokens", hint="leave it out for 4096")
    KVQuant(plain_bits()[0] if kv_bits is None else kv_bits, kv_group_size)  # refuses what does not exist


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


def _open(checkpoint: Checkpoint, dtype: str) -> tuple[Any, Conversion, str, tuple[str, ...]]:
    """mlx-lm's model on placeholders, how it is converted, --dtype, and remarks."""
    from mlxport.layouts.mlx_lm.opening import open_model

    here = all(path.is_file() for path in checkpoint.weight_files)
    model = open_model(checkpoint, dtype=dtype, headers_only=not here)
    conversion = model.plain
    asked = planned_dtype(dtype, conversion)
    notes = (*checkpoint.problems, *conversion.notes)
    if asked != dtype:
        notes = (*notes, f"the checkpoint holds {conversion.dtype}: planned with --dtype {asked}")
    return model.at(asked).skeleton(), conversion, asked, notes


def planned_dtype(dtype: str, conversion: Conversion) -> str:
    """``dtype``; but where it is ``auto`` and the checkpoint holds wider floats, 16 bits: a machine is to be filled."""
    wide = conversion.dtype not in _SIXTEEN and not conversion.quantized
    return _SIXTEEN[0] if dtype == "auto" and wide else dtype


def _row(
    setting: Setting,
    weights: SettingWeights,
    dtype: str,
    parameters: int,
    machine: Machine,
    footprint: Footprint,
    context: int,
    limit: int | None,
) -> FitRow:
    name = setting.name(dtype)
    if weights.problem:
        return FitRow(name, setting.quantize, problem=weights.problem)
    need = footprint.at(context)
    budget = machine.gpu_bytes - weights.nbytes
    longest = longest_context(footprint, budget, limit)
    speed = None
    if machine.bandwidth_gb_s is not None:
        moved = weights.read + need.cache
        low, high = (share * machine.bandwidth_gb_s * 1e9 / moved for share in decode_efficiency())
        speed = (low, high)
    return FitRow(
        name,
        setting.quantize,
        bits_per_weight=weights.nbytes * 8 / max(parameters, 1),
        disk_bytes=weights.nbytes,
        cache_bytes=need.cache,
        workspace_bytes=need.peak - need.cache,
        spare_bytes=budget - need.peak,
        # between two computed lengths: never against what was computed at this very context
        longest_context=max(longest, context) if need.peak <= budget else min(longest, context - 1),
        tokens_per_second=speed,
    )


def longest_context(footprint: Footprint, budget: int, limit: int | None) -> int:
    """The most tokens whose needs stay within ``budget`` bytes, 0 where not even a short prompt does.

    Needs are computed at some lengths, from one piece of a prompt on at those that double, and taken to grow evenly
    between two of them.
    """
    last = limit or _FAR
    low = min(_NEAR, last)
    if footprint.at(low).peak > budget:
        return 0
    while low < last:
        high = min(2 * low if low >= PREFILL_STEP else 8 * low if low < _NEAR * 8 else PREFILL_STEP, last)
        before, after = footprint.at(low).peak, footprint.at(high).peak
        if after > budget:
            found = low + (high - low) * (budget - before) // max(after - before, 1)
            return found // _NEAR * _NEAR
        low = high
    return last


def _kv_notes(kv_bits: int | None, context: int) -> tuple[str, ...]:
    if kv_bits is None or context > quantized_from():
        return ()
    return (f"mlx-lm quantizes the cache from {quantized_from():,} tokens on, so --kv-bits saves nothing here",)


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
