"""The generated layout of a transformers checkpoint: its model is captured without its weights, and emitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from mlxport.errors import UnsupportedError, WeightsError
from mlxport.graph.build import Port
from mlxport.graph.capture.examples import Example
from mlxport.layouts.base import LayoutOptions
from mlxport.layouts.foreign_parts import refuse_adapters, refuse_mlx_code
from mlxport.layouts.generated import hf_model
from mlxport.layouts.generated.emitting import emit
from mlxport.layouts.generated.generation_step import emit_step
from mlxport.layouts.generated.hf_weights import Sources, absent, assign, weight_maps
from mlxport.layouts.generated.packed_sources import refuse_quantized
from mlxport.layouts.generated.timm_models import refuse_without_timm, with_labels
from mlxport.layouts.generated.weights_trace import TORCH_DTYPES, GeneratedConversion, Map, MissingWeights, assemble
from mlxport.progress import listed
from mlxport.source.timm_config import is_timm
from mlxport.types import Checkpoint

__all__ = [
    "PortedStep",
    "checked_dtype",
    "names_differ",
    "open_generated",
    "port_step",
    "shared_maps",
    "weight_sources",
]


def open_generated(checkpoint: Checkpoint, options: LayoutOptions) -> GeneratedConversion:
    """Port the transformers model that a checkpoint is of; its weights stay on disk.

    Raises:
        UnsupportedError: transformers has no such model, or it cannot be captured.
    """
    dtype = checked_dtype(checkpoint, options.dtype)
    port, example, sources, maps = _emitted(checkpoint, options, dtype)

    config: Mapping[str, Any] = checkpoint.config
    if is_timm(config):
        config = with_labels(config, hf_model.read_config(checkpoint))

    def original() -> Any:
        return hf_model.empty_model(checkpoint, dtype=torch.float32, attention="eager")

    try:
        made = assemble(
            port, checkpoint.tensors, maps, example, original,
            dtype=dtype, quant=options.quant, config=config, mlxfn=options.mlxfn, weights_of=checkpoint,
        )  # fmt: skip
    except MissingWeights as error:
        raise names_differ(original(), checkpoint, sources) from error
    return made if sources.change is None else replace(made, notes=(str(sources.change), *made.notes))


@dataclass(frozen=True)
class PortedStep:
    """A language model's step of generation, emitted.

    Attributes:
        checkpoint: What it was made from.
        dtype: Name of the dtype that it was captured in.
        model: transformers' model, whose parameters take no memory.
        sources: Where these come from.
        maps: How each is made of the checkpoint's tensors.
        port: The source.
    """

    checkpoint: Checkpoint
    dtype: str
    model: Any
    sources: Sources
    maps: Mapping[str, Map]
    port: Port

    @property
    def model_type(self) -> str:
        """The checkpoint's."""
        return _model_type(self.checkpoint)

    def names_differ(self) -> WeightsError:
        """What is said where the checkpoint lacks a parameter."""
        return names_differ(self.model, self.checkpoint, self.sources)


def port_step(checkpoint: Checkpoint, asked: str, fold_batchnorm: bool) -> PortedStep:
    """Port the step of generation of the transformers model that a checkpoint is of.

    Args:
        checkpoint: The opened source.
        asked: Dtype, as of ``convert``.
        fold_batchnorm: As of ``convert``.

    Raises:
        UnsupportedError: transformers has no such model, or mlx-lm's caches cannot hold what it remembers.
    """
    dtype = checked_dtype(checkpoint, asked)
    model = hf_model.empty_model(checkpoint, dtype=TORCH_DTYPES[dtype], use_cache=True)
    sources, maps = weight_sources(model, checkpoint)
    maps = shared_maps(model, maps)
    with hf_model.hollow(model):
        port = emit_step(model, model_type=_model_type(checkpoint), fold_batchnorm=fold_batchnorm)
    if sources.change:
        port.notes.insert(0, str(sources.change))
    return PortedStep(checkpoint, dtype, model, sources, maps, port)


def checked_dtype(checkpoint: Checkpoint, asked: str) -> str:
    """The dtype to capture a model in, of a checkpoint whose weights this layout reads."""
    where = f"{checkpoint.location}/config.json"
    refuse_mlx_code(checkpoint.config, where)
    refuse_quantized(checkpoint.config, where)
    refuse_without_timm(checkpoint.config, where)
    return _stored_dtype(checkpoint) if asked == "auto" else asked


def _model_type(checkpoint: Checkpoint) -> str:
    return str(checkpoint.config.get("model_type", ""))


def weight_sources(model: Any, checkpoint: Checkpoint) -> tuple[Sources, dict[str, Map]]:
    """Where the parameters of a model come from, and how each is made of that."""
    sources = assign(model, checkpoint)
    refuse_adapters(sources.left, checkpoint.location)
    return sources, weight_maps(model, sources)


def names_differ(model: Any, checkpoint: Checkpoint, sources: Sources) -> WeightsError:
    """What the model expects and the checkpoint lacks, beside what it holds instead."""
    missing = absent(model, sources.found())
    held = f", which holds {listed(sources.left)} instead" if sources.left else ""
    return WeightsError(
        f"{type(model).__name__} expects {listed(missing)}, absent from {checkpoint.location}{held}",
        hint='"architectures" in config.json must name the class that saved these weights, and all of them be there',
    )


def _emitted(
    checkpoint: Checkpoint, options: LayoutOptions, dtype: str
) -> tuple[Port, Example, Sources, dict[str, Any]]:
    """Source, example inputs, and how each tensor is made of the checkpoint's; eager attention is the second choice."""
    model_type = _model_type(checkpoint)
    dynamic, fold = options.dynamic, options.fold_batchnorm
    problem: UnsupportedError | None = None
    for attention in ("sdpa", "eager"):
        model = hf_model.empty_model(checkpoint, dtype=TORCH_DTYPES[dtype], attention=attention)
        sources, maps = weight_sources(model, checkpoint)
        example = Example("example", (), hf_model.example_inputs(model))
        try:
            with hf_model.hollow(model):
                port = emit(model, example, dynamic=dynamic, fold_batchnorm=fold, model_type=model_type)
        except UnsupportedError as error:
            problem = problem or error
            continue
        return port, example, sources, shared_maps(model, maps)
    assert problem is not None
    raise problem


def shared_maps(model: Any, maps: Mapping[str, Any]) -> dict[str, Any]:
    """``maps`` with the other names of parameters that are shared."""
    named = dict(model.named_parameters(remove_duplicate=False))
    known = {id(named[name]): entry for name, entry in maps.items() if name in named}
    return {**{name: known[id(item)] for name, item in named.items() if id(item) in known}, **maps}


def _stored_dtype(checkpoint: Checkpoint) -> str:
    """The dtype that the config names, else that of most of the stored elements."""
    named = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "").removeprefix("torch.")
    if named in TORCH_DTYPES:
        return named
    sizes: dict[str, int] = {}
    for ref in checkpoint.tensors.values():
        sizes[ref.dtype] = sizes.get(ref.dtype, 0) + ref.size
    names = {"F16": "float16", "BF16": "bfloat16"}
    return names.get(max(sizes, key=lambda key: sizes[key]), "float32") if sizes else "float32"
