"""The generated layout of a model in parts: each is captured by itself; what they share is written once."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import torch
from mlx.utils import tree_flatten

from mlxport.errors import UnsupportedError
from mlxport.graph.build import Port
from mlxport.graph.capture.examples import Example
from mlxport.graph.write.execute_source import execute
from mlxport.graph.write.port_weights import fill
from mlxport.layouts.base import LayoutOptions
from mlxport.layouts.conversion import Conversion, make_conversion
from mlxport.layouts.generated import hf_model
from mlxport.layouts.generated.emitting import emit
from mlxport.layouts.generated.model_parts import Part, PartedModel
from mlxport.layouts.generated.opening import checked_dtype, names_differ, shared_maps, weight_sources
from mlxport.layouts.generated.parts_table import parted
from mlxport.layouts.generated.sequence_step import call_as
from mlxport.layouts.generated.weights_trace import (
    TORCH_DTYPES,
    Map,
    MissingWeights,
    final_config,
    weights_of_port,
)
from mlxport.layouts.quantizing import Built, quantize
from mlxport.quant import QuantRequest
from mlxport.source.open_clip_config import is_open_clip, picture_processor_of
from mlxport.source.written_code import PARTS
from mlxport.transform import Pipeline, lazy_arrays, trace
from mlxport.types import Checkpoint

__all__ = ["PartsConversion", "PortedPart", "open_in_parts"]


@dataclass(frozen=True)
class PortedPart:
    """One part of a model: its source, and what it is compared with.

    Attributes:
        part: Its entry in the table.
        port: The emitted source and what it was made from.
        example: Inputs that it was captured with.
        original: Makes the original, in eval mode, called as this part is.
        unquantized: Makes its weights, by path, as they are before any is quantized.
        weights_of: What the original's weights are read from.
    """

    part: Part
    port: Port
    example: Example
    original: Callable[[], Any] = field(repr=False)
    unquantized: Callable[[], dict[str, mx.array]] = field(repr=False)
    weights_of: Checkpoint


@dataclass(frozen=True)
class PartsConversion(Conversion):
    """A conversion whose output brings code of its own for each part.

    Attributes:
        known: The entry of the table.
        parts: The parts, in the table's order.
        original: Makes the original, in eval mode, called as its class is.
    """

    known: PartedModel = field(kw_only=True)
    parts: tuple[PortedPart, ...] = field(kw_only=True)
    original: Callable[[], Any] = field(kw_only=True, repr=False)


def open_in_parts(checkpoint: Checkpoint, options: LayoutOptions) -> PartsConversion:
    """Port the parts of the transformers model that a checkpoint is of; its weights stay on disk.

    Raises:
        UnsupportedError: The table has no such model, or a part cannot be captured.
        WeightsError: The checkpoint has not the tensors that the model wants.
    """
    known = parted(checkpoint.config)
    if known is None:
        raise UnsupportedError(
            f"{checkpoint.location}: models of type {checkpoint.config.get('model_type')!r} have no parts",
            hint="leave --layout out",
        )
    dtype = checked_dtype(checkpoint, options.dtype)
    model, ports, examples = _emitted(checkpoint, options, known, dtype)
    sources, maps = weight_sources(model, checkpoint)
    maps = shared_maps(model, maps)
    _refuse_clashes(ports)
    fields = {part.name: port.fields for part, port in zip(known.parts, ports, strict=True)}
    built, config = Built({}), {**checkpoint.config, PARTS: fields}
    try:
        program = trace(_pipeline(ports, known, maps, config, options.quant, built), checkpoint.tensors)
    except MissingWeights as error:
        raise names_differ(model, checkpoint, sources) from error
    changed = [] if sources.change is None else [str(sources.change)]
    if is_open_clip(checkpoint.root):
        changed.append("a model of OpenCLIP: config, names and processor become those of transformers' CLIP")
    notes = list(dict.fromkeys([*changed, *(note for port in ports for note in port.notes)]))
    made = make_conversion(program, built, dtype, options.quant, notes, final_config)
    parts = tuple(
        _ported(checkpoint, known, part, port, example, maps)
        for part, port, example in zip(known.parts, ports, examples, strict=True)
    )
    files = {f"{part.name}.py": port.source for part, port in zip(known.parts, ports, strict=True)}
    if is_open_clip(checkpoint.root):
        files["preprocessor_config.json"] = json.dumps(picture_processor_of(checkpoint.root), indent=2)
    return PartsConversion(
        **{**vars(made), "source_files": files}, known=known, parts=parts, original=lambda: _original(checkpoint, known)
    )


def _original(checkpoint: Checkpoint, known: PartedModel) -> Any:
    return _empty(checkpoint, known, torch.float32, "eager")


def _empty(checkpoint: Checkpoint, known: PartedModel, dtype: torch.dtype, attention: str) -> Any:
    if known.empty is not None:
        return known.empty(checkpoint, dtype, attention)
    return hf_model.empty_model(checkpoint, dtype=dtype, attention=attention)


def _ported(
    checkpoint: Checkpoint, known: PartedModel, part: Part, port: Port, example: Example, maps: Mapping[str, Map]
) -> PortedPart:
    names = tuple(example.kwargs)
    return PortedPart(
        part, port, example,
        original=lambda: call_as(_original(checkpoint, known), part.call, *names),
        unquantized=lambda: weights_of_port(port, lazy_arrays(checkpoint.tensors), maps),
        weights_of=checkpoint,
    )  # fmt: skip


def _emitted(
    checkpoint: Checkpoint, options: LayoutOptions, known: PartedModel, dtype: str
) -> tuple[Any, list[Port], list[Example]]:
    """The model, its parts emitted, and their examples; eager attention is the second choice."""
    problem: UnsupportedError | None = None
    for attention in ("sdpa", "eager"):
        model = _empty(checkpoint, known, TORCH_DTYPES[dtype], attention)
        if known.prepare is not None:
            known.prepare(model)
        ports: dict[str, Port] = {}
        examples: list[Example] = []
        try:
            with hf_model.hollow(model):
                for part in known.parts:
                    example = _example(model, part, ports)
                    call_as(model, part.call, *example.kwargs)
                    title = f"{part.name.capitalize()}, a part of {_class_name(checkpoint)}, in MLX."
                    ports[part.name] = emit(
                        model, example, dynamic=options.dynamic, fold_batchnorm=options.fold_batchnorm,
                        model_type=str(checkpoint.config.get("model_type", "")), title=title,
                        fields_at=(PARTS, part.name),
                    )  # fmt: skip
                    examples.append(example)
        except UnsupportedError as error:
            problem = problem or error
            continue
        return model, list(ports.values()), examples
    assert problem is not None
    raise problem


def _class_name(checkpoint: Checkpoint) -> str:
    """The class that the config names first: without one, no model is claimed to be one in parts."""
    return next(iter(checkpoint.model_config.architectures), "a model")


def _example(model: Any, part: Part, ports: Mapping[str, Port]) -> Example:
    """Inputs of a part: those of the model, and noise for what another part gives."""
    if part.example is not None:
        inputs = part.example(model)
    else:
        inputs = hf_model.example_inputs(model, part.inputs) if len(part.of_parts) < len(part.inputs) else {}
        inputs |= _given_by_parts(part, ports)
    return Example("example", (), {name: inputs[name] for name in part.inputs if name in inputs})


def _given_by_parts(part: Part, ports: Mapping[str, Port]) -> dict[str, torch.Tensor]:
    """Noise like what other parts give."""
    generator, made = torch.Generator().manual_seed(0), {}
    for rows, (name, other) in enumerate(part.of_parts.items(), 2):  # as many of each as of no other
        (output,) = ports[other].captured.outputs
        value = output.meta["val"]
        made[name] = torch.randn(rows, *map(int, value.shape[1:]), generator=generator).to(value.dtype)
    return made


def _refuse_clashes(ports: Sequence[Port]) -> None:
    """Refuse parts that keep different arrays under one path."""
    found: dict[str, Any] = {}
    for port in ports:
        for path, weight in port.weights.items():
            made = weight, [port.folds[name].spelled() for name in weight.sources if name in port.folds]
            if found.setdefault(path, made) != made:
                raise UnsupportedError(f"two parts of the model keep different values at {path}")


def _pipeline(
    ports: Sequence[Port],
    known: PartedModel,
    maps: Mapping[str, Map],
    config: Mapping[str, Any],
    quant: QuantRequest | None,
    built: Built,
) -> Pipeline:
    """What makes the weights of all parts, quantized as asked."""
    sources = [execute(port.source) for port in ports]

    def pipeline(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
        weights = [weights_of_port(port, arrays, maps) for port in ports]
        filled = [fill(source.Model(source.ModelArgs()), made) for source, made in zip(sources, weights, strict=True)]
        model = functools.reduce(_joined, filled, nn.Module())
        built.config = dict(config)
        built.parameters = sum(array.size for array in {k: v for made in weights for k, v in made.items()}.values())
        if quant is not None:
            _keep_others(model, known.quantized)
            built.config = quantize(model, built.config, quant, built)
        built.model = model
        return dict(tree_flatten(model.parameters()))

    return pipeline


def _keep_others(model: Any, quantized: Sequence[str]) -> None:
    """Let only layers of these models be quantized, unless a recipe says otherwise."""
    if quantized:
        model.quant_predicate = lambda path, module: path.partition(".")[0] in quantized
        model.why_kept = f"of this model only {', '.join(quantized)} is quantized; a recipe can name more"


def _joined(whole: Any, part: Any) -> Any:
    """A tree with all that two have, by path; what both have is the same."""
    if isinstance(whole, nn.Module) and isinstance(part, nn.Module):
        for name, value in part.items():
            whole[name] = _joined(whole[name], value) if name in whole else value
        return whole
    if isinstance(whole, list) and isinstance(part, list):
        both = [_joined(*pair) for pair in zip(whole, part, strict=False)]
        return [*both, *whole[len(both) :], *part[len(both) :]]
    return part
