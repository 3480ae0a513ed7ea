"""A transformers model of an encoder and a decoder, written as MLX source that keeps what it has read and written."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from mlxport.graph.build import Port
from mlxport.graph.capture.examples import Example
from mlxport.layouts.base import LayoutOptions
from mlxport.layouts.foreign_parts import refuse_adapters, refuse_mlx_code
from mlxport.layouts.generated import hf_model
from mlxport.layouts.generated.generation_step import emit_step
from mlxport.layouts.generated.hf_weights import assign, weight_maps
from mlxport.layouts.generated.opening import names_differ, shared_maps, stored_dtype
from mlxport.layouts.generated.packed_sources import refuse_quantized
from mlxport.layouts.generated.sequence_step import giving_logits
from mlxport.layouts.generated.weights_trace import TORCH_DTYPES, GeneratedConversion, MissingWeights, assemble
from mlxport.types import Checkpoint

__all__ = ["open_sequence_model"]


def open_sequence_model(checkpoint: Checkpoint, options: LayoutOptions) -> GeneratedConversion:
    """Port the model of an encoder and a decoder that a checkpoint is of; its weights stay on disk.

    Raises:
        UnsupportedError: transformers has no such model, or mlx-lm's caches cannot hold what it remembers.
        WeightsError: The checkpoint has not the tensors that the model wants.
    """
    where = f"{checkpoint.location}/config.json"
    refuse_mlx_code(checkpoint.config, where)
    refuse_quantized(checkpoint.config, where)
    dtype = stored_dtype(checkpoint) if options.dtype == "auto" else options.dtype
    model = hf_model.empty_model(checkpoint, dtype=TORCH_DTYPES[dtype], use_cache=True)
    sources = assign(model, checkpoint)
    refuse_adapters(sources.left, checkpoint.location)
    maps = shared_maps(model, weight_maps(model, sources))
    model_type = str(checkpoint.config.get("model_type", ""))
    with hf_model.hollow(model):
        port = emit_step(model, model_type=model_type, fold_batchnorm=options.fold_batchnorm)
    if sources.change:
        port.notes.insert(0, str(sources.change))

    def original() -> Any:
        return giving_logits(hf_model.empty_model(checkpoint, dtype=torch.float32, attention="eager"))

    try:
        return assemble(
            port, checkpoint.tensors, maps, _example(port), original,
            dtype=dtype, quant=options.quant, config=checkpoint.config, weights_of=checkpoint,
        )  # fmt: skip
    except MissingWeights as error:
        raise names_differ(original(), checkpoint, sources) from error


def _example(port: Port) -> Example:
    """Tokens of both sides; the cache is no longer an input that a comparison may choose."""
    captured = port.captured
    names = [name for name in captured.signature.parameters if name != "cache"]
    captured.inputs[:], captured.values[:] = captured.inputs[: len(names)], captured.values[: len(names)]
    captured.in_spec = pytree.tree_flatten(((), dict.fromkeys(names, 0)))[1]
    return Example("example", (), dict(zip(names, captured.values, strict=True)))
