"""What a model becomes that is run for its task, what runs it, and what that takes: from config and headers alone."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxport.fit.fit_report import FitRow
from mlxport.fit.hardware import Machine
from mlxport.fit.quant_settings import Setting, measure, settings
from mlxport.fit.task_footprint import CallNeed, need_of_call
from mlxport.fit.task_inputs import SECONDS, Sizes, patches, sized
from mlxport.fit.task_plan_report import TaskPlan
from mlxport.layouts.base import Layout, PlainOptions
from mlxport.layouts.table import AUTO, chosen
from mlxport.run.tasks.task_table import find_task, task_command
from mlxport.source.processor_files import read_processor
from mlxport.types import Checkpoint

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion

__all__ = ["plan_task", "task_layout"]

_VECTORS = ("sentence-similarity", "feature-extraction")


def task_layout(config: Mapping[str, Any]) -> Layout | None:
    """The layout that ``auto`` chooses, if it is of models without a cache to plan; else None."""
    layout = chosen(AUTO, config)
    return layout if layout.not_generating is not None and not layout.whole else None


@dataclass(frozen=True)
class _Call:
    """One call that running a model makes.

    Attributes:
        model: What is called.
        inputs: Shapes and dtypes of its inputs, by name.
        method: Name of the module of it that is called; "" for itself.
    """

    model: nn.Module
    inputs: Mapping[str, tuple[tuple[int, ...], mx.Dtype]]
    method: str = ""


def plan_task(
    source: str, checkpoint: Checkpoint, layout: Layout, machine: Machine, *, tokens: int, dtype: str
) -> TaskPlan:
    """Plan for a model of ``task_layout``.

    Args:
        source: How it was named.
        checkpoint: Its config and headers; nothing else of it is read.
        layout: What it becomes.
        machine: What it is to run on.
        tokens: Of a text, where it reads any.
        dtype: As of ``convert``.

    Raises:
        UnsupportedError: It cannot be converted.
        SourceError: A file that describes its processor is no JSON object.
    """
    conversion = (layout.foresees or layout.opens)(checkpoint, PlainOptions(dtype))
    task = find_task(checkpoint.root, checkpoint.config, layout)
    side = {path.name: path for path in checkpoint.side_files if path.parent == checkpoint.root}
    sizes = Sizes(tokens, read_processor(side, checkpoint.config))
    models, calls = _built(conversion)
    needs = [found for call in calls if (found := _need(call, sizes)) is not None]
    whole = bool(calls) and len(needs) == len(calls)
    workspace = max((need.nbytes for need in needs), default=0) if whole else 0
    rows = tuple(_row(setting, models, conversion, workspace, machine) for setting in _settings())
    best = next((row for row in rows if row.fits), None)
    notes = [*checkpoint.problems, *conversion.notes]
    if not whole:
        notes.append("memory is that of the weights alone: what a call holds besides could not be counted")
    if task in _VECTORS:
        notes.append("8 bits keep vectors, fewer turn them")
    return TaskPlan(
        source, machine, layout.name, layout.summary or f"a folder that {layout.name} loads", task,
        task_command(task, "DST") if task else "",
        tuple(_counted(calls, needs, sizes, checkpoint.config)) if whole else (),
        conversion.parameters, rows, best.name if best else "", tuple(notes),
    )  # fmt: skip


def _settings() -> list[Setting]:
    """None, and plain bits: what a recipe or another mode makes of it is seldom wanted of such models."""
    return [setting for setting in settings() if setting.quantize is None or setting.quantize.isdecimal()]


def _built(conversion: Conversion) -> tuple[list[nn.Module], list[_Call]]:
    """The modules that hold the weights, whose parameters take no memory, and what running calls of them."""
    from mlxport.layouts.generated.parts_opening import PartsConversion
    from mlxport.layouts.generated.weights_trace import GeneratedConversion

    if isinstance(conversion, PartsConversion):
        calls = [_Call(_port(part.port, conversion), _inputs(part.example)) for part in conversion.parts]
    elif isinstance(conversion, GeneratedConversion):
        model = _port(conversion.port, conversion)
        hears = hasattr(model, "make_cache")  # an encoder and a decoder: called by its methods, on a cache
        calls = [] if hears else [_Call(model, _inputs(conversion.example))]
        return [model], calls
    else:
        assert conversion.model is not None
        return [conversion.model.skeleton()], list(_whisper(conversion))
    return [call.model for call in calls], calls


def _port(port: Any, conversion: Conversion) -> nn.Module:
    from mlxport.graph.write.execute_source import execute

    source = execute(port.source)
    model: nn.Module = source.Model(source.ModelArgs())
    outputs = conversion.program.outputs
    zeros = [(name, mx.zeros(outputs[name].shape, outputs[name].dtype)) for name, _ in tree_flatten(model.parameters())]
    model.update(tree_unflatten(zeros))
    return model.eval()


def _inputs(example: Any) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
    return {
        name: (tuple(value.shape), getattr(mx, str(value.dtype).removeprefix("torch.")))
        for name, value in example.kwargs.items()
    }


def _whisper(conversion: Conversion) -> Iterator[_Call]:
    """The encoder on 30 seconds, and the decoder on all the tokens that it may write; by mlx-whisper, where it is."""
    if importlib.util.find_spec("mlx_whisper") is None:
        return
    module = importlib.import_module("mlx_whisper.whisper")
    config, dtype = conversion.config, getattr(mx, conversion.dtype)
    sizes = module.ModelDimensions(**{name: config[name] for name in module.ModelDimensions.__dataclass_fields__})
    model = module.Whisper(sizes, dtype)
    heard = (1, sizes.n_audio_ctx, sizes.n_audio_state)
    yield _Call(model, {"x": ((1, 2 * sizes.n_audio_ctx, sizes.n_mels), dtype)}, "encoder")
    yield _Call(model, {"x": ((1, sizes.n_text_ctx), mx.int32), "xa": (heard, dtype)}, "decoder")


def _need(call: _Call, sizes: Sizes) -> CallNeed | None:
    run = getattr(call.model, call.method) if call.method else call.model
    if call.method:
        return need_of_call(call.model, {name: mx.zeros(*given) for name, given in call.inputs.items()}, run)
    return need_of_call(call.model, sized(call.inputs, sizes), run) or need_of_call(
        call.model, sized(call.inputs, Sizes(_shorter(call), None)), run
    )


def _shorter(call: _Call) -> int:
    shape, _ = call.inputs.get("input_ids", ((1, 1), mx.int32))
    return shape[1]


def _row(setting: Setting, models: list[nn.Module], conversion: Conversion, workspace: int, machine: Machine) -> FitRow:
    weights = [measure(model, setting, {}) for model in models]
    name = setting.name(conversion.dtype)
    if all(found.problem for found in weights):
        return FitRow(name, setting.quantize, problem=weights[0].problem)
    tensors: dict[str, int] = {}
    for model, found in zip(models, weights, strict=True):
        tensors |= (found if not found.problem else measure(model, Setting(None), {})).tensors
    nbytes = sum(tensors.values())
    return FitRow(
        name, setting.quantize,
        bits_per_weight=nbytes * 8 / max(conversion.parameters, 1),
        disk_bytes=nbytes,
        workspace_bytes=workspace,
        spare_bytes=machine.gpu_bytes - nbytes - workspace,
    )  # fmt: skip


def _counted(calls: list[_Call], needs: list[CallNeed], sizes: Sizes, config: Mapping[str, Any]) -> Iterator[str]:
    """The inputs in words."""
    for call, need in zip(calls, needs, strict=True):
        if call.method == "encoder":
            yield f"{SECONDS} s of sound: {need.outputs[0][1]:,} moments"
        elif call.method == "decoder":
            yield f"a transcript of {call.inputs['x'][0][1]} tokens"
        elif "input_ids" in call.inputs:
            yield f"a text of {sizes.tokens:,} tokens"
        elif "input_values" in call.inputs:
            yield f"{SECONDS} s of sound: {sizes.samples:,} samples, {need.outputs[0][1]:,} moments"
        elif "pixel_values" in call.inputs:
            yield _picture(sized(call.inputs, sizes)["pixel_values"].shape[2:], config)


def _picture(shape: tuple[int, ...], config: Mapping[str, Any]) -> str:
    height, width = shape[:2]
    count = patches(config, height, width)
    return f"a picture of {width} x {height} pixels" + (f": {count:,} patches" if count else "")
