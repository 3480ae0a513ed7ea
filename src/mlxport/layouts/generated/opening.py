"""The generated layout of a transformers checkpoint: its model is captured without its weights, and emitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from mlxport.errors import UnsupportedError, WeightsError
from mlxport.graph.build import Port
from mlxport.graph.capture.examples import Example
from mlxport.layouts.base import LayoutOptions
from mlxport.layouts.foreign_parts import refuse_adapters, refuse_mlx_code
from mlxport.layouts.generated import hf_model
from mlxport.layouts.generated.emitting import emit
from mlxport.layouts.generated.hf_weights import Sources, absent, assign, weight_maps
from mlxport.layouts.generated.packed_sources import refuse_quantized
from mlxport.layouts.generated.weights_trace import TORCH_DTYPES, GeneratedConversion, MissingWeights, assemble
from mlxport.progress import listed
from mlxport.types import Checkpoint

__all__ = ["names_differ", "open_generated", "shared_maps", "stored_dtype"]


def open_generated(checkpoint: Checkpoint, options: LayoutOptions) -> GeneratedConversion:
    """Port the transformers model that a checkpoint is of; its weights stay on disk.

    Raises:
        UnsupportedError: transformers has no such model, or it cannot be captured.
    """
    where = f"{checkpoint.location}/config.json"
    refuse_mlx_code(checkpoint.config, where)
    refuse_quantized(checkpoint.config, where)
    dtype = stored_dtype(checkpoint) if options.dtype == "auto" else options.dtype
    port, example, sources, maps = _emitted(checkpoint, options, dtype)

    def original() -> Any:
        return hf_model.empty_model(checkpoint, dtype=torch.float32, attention="eager")

    try:
        made = assemble(
            port, checkpoint.tensors, maps, example, original,
            dtype=dtype, quant=options.quant, config=checkpoint.config, mlxfn=options.mlxfn, weights_of=checkpoint,
        )  # fmt: skip
    except MissingWeights as error:
        raise names_differ(original(), checkpoint, sources) from error
    return made if sources.change is None else replace(made, notes=(str(sources.change), *made.notes))


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
    model_type = str(checkpoint.config.get("model_type", ""))
    dynamic, fold = options.dynamic, options.fold_batchnorm
    problem: UnsupportedError | None = None
    for attention in ("sdpa", "eager"):
        model = hf_model.empty_model(checkpoint, dtype=TORCH_DTYPES[dtype], attention=attention)
        sources = assign(model, checkpoint)
        refuse_adapters(sources.left, checkpoint.location)
        maps = weight_maps(model, sources)
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


def stored_dtype(checkpoint: Checkpoint) -> str:
    """The dtype that the config names, else that of most of the stored elements."""
    named = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "").removeprefix("torch.")
    if named in TORCH_DTYPES:
        return named
    sizes: dict[str, int] = {}
    for ref in checkpoint.tensors.values():
        sizes[ref.dtype] = sizes.get(ref.dtype, 0) + ref.size
    names = {"F16": "float16", "BF16": "bfloat16"}
    return names.get(max(sizes, key=lambda key: sizes[key]), "float32") if sizes else "float32"
