"""A transformers language model that mlx-lm does not have, as mlx-lm loads one: its own source, on mlx-lm's caches."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxport.graph.build import Port
from mlxport.graph.write.execute_source import execute
from mlxport.layouts.base import PORT_FILE, LayoutOptions
from mlxport.layouts.conversion import Conversion, ModelSource, TracedModel, empty, make_conversion
from mlxport.layouts.foreign_parts import refuse_adapters, refuse_mlx_code
from mlxport.layouts.generated import hf_model
from mlxport.layouts.generated.generation_step import emit_step
from mlxport.layouts.generated.hf_weights import assign, weight_maps
from mlxport.layouts.generated.opening import names_differ, shared_maps, stored_dtype
from mlxport.layouts.generated.packed_sources import refuse_quantized
from mlxport.layouts.generated.weights_trace import (
    TORCH_DTYPES,
    Map,
    MissingWeights,
    final_config,
    weights_of_port,
)
from mlxport.layouts.quantizing import Built, count_parameters, quantize
from mlxport.quant import QuantRequest
from mlxport.transform import Pipeline, trace
from mlxport.types import Checkpoint

__all__ = ["open_language_model", "traced_language_model"]


def open_language_model(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    """Port the language model that a checkpoint is of; its weights stay on disk.

    Raises:
        UnsupportedError: transformers has no such model, or mlx-lm's caches cannot hold what it remembers.
        WeightsError: The checkpoint has not the tensors that the model wants.
    """
    return traced_language_model(checkpoint, options.dtype, options.fold_batchnorm).conversion(options.quant)


def traced_language_model(checkpoint: Checkpoint, asked: str = "auto", fold_batchnorm: bool = False) -> TracedModel:
    """The port of a language model, run once on placeholders.

    Args:
        checkpoint: The opened source.
        asked: Dtype, as of ``convert``.
        fold_batchnorm: As of ``convert``.

    Raises:
        MlxportError: As of ``open_language_model``.
    """
    where = f"{checkpoint.location}/config.json"
    refuse_mlx_code(checkpoint.config, where)
    refuse_quantized(checkpoint.config, where)
    dtype = stored_dtype(checkpoint) if asked == "auto" else asked
    model_type = str(checkpoint.config.get("model_type", ""))
    model = hf_model.empty_model(checkpoint, dtype=TORCH_DTYPES[dtype], use_cache=True)
    sources = assign(model, checkpoint)
    refuse_adapters(sources.left, checkpoint.location)
    maps = shared_maps(model, weight_maps(model, sources))
    with hf_model.hollow(model):
        port = emit_step(model, model_type=model_type, fold_batchnorm=fold_batchnorm)
    notes = (*([str(sources.change)] if sources.change else []), *port.notes)
    source = _Source(port, maps, {**checkpoint.config, "model_file": PORT_FILE, "model_type": model_type})
    built = Built({})
    pipeline = source.pipeline(None, built)
    try:
        program = trace(pipeline, checkpoint.tensors)
    except MissingWeights as error:
        raise names_differ(model, checkpoint, sources) from error
    plain = make_conversion(program, built, dtype, None, list(notes), final_config)
    assert built.model is not None
    empty(built.model, program)
    made = ModelSource(
        pipeline=source.pipeline,
        notes=notes,
        final_config=final_config,
        blamed=contextlib.nullcontext,
        reopen=lambda other: traced_language_model(checkpoint, other, fold_batchnorm),
        files={PORT_FILE: port.source},
    )
    return TracedModel(checkpoint, dtype, plain, dict(source.config), made, built.model)


class _Source:
    """The emitted source, run, and how its weights are made."""

    def __init__(self, port: Port, maps: Mapping[str, Map], config: dict[str, Any]) -> None:
        self.port, self.maps, self.config = port, maps, config
        self._namespace: Any = execute(port.source)

    def pipeline(self, quant: QuantRequest | None, built: Built) -> Pipeline:
        def run(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
            model: nn.Module = self._namespace.Model(self._namespace.ModelArgs.from_dict(self.config))
            weights = weights_of_port(self.port, arrays, self.maps)
            expected = dict(tree_flatten(model.parameters()))
            if differing := sorted(set(expected) ^ set(weights)):
                raise AssertionError(f"the emitted model and its weights differ in {differing}")
            model.load_weights(list(weights.items()))
            model.eval()
            built.config = dict(self.config)
            if quant is not None:
                built.config = quantize(model, built.config, quant, built)
            built.model, built.parameters = model, count_parameters(model)
            return dict(tree_flatten(model.parameters()))

        return run
