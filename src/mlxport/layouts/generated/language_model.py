"""A transformers language model that mlx-lm does not have, as mlx-lm loads one: its own source, on mlx-lm's caches."""

from __future__ import annotations

import contextlib
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxport.graph.write.execute_source import execute
from mlxport.graph.write.port_weights import fill
from mlxport.layouts.base import PORT_FILE, LayoutOptions
from mlxport.layouts.conversion import Conversion, ModelSource, TracedModel, empty, make_conversion
from mlxport.layouts.generated.opening import PortedStep, port_step
from mlxport.layouts.generated.sanitizing import add_sanitize, tied_names
from mlxport.layouts.generated.weights_trace import MissingWeights, final_config, weights_of_port
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
    step = port_step(checkpoint, asked, fold_batchnorm)
    port, dtype = step.port, step.dtype
    source = _Source(step, {**checkpoint.config, "model_file": PORT_FILE, "model_type": step.model_type})
    built = Built({})
    pipeline = source.pipeline(None, built)
    try:
        program = trace(pipeline, checkpoint.tensors)
    except MissingWeights as error:
        raise step.names_differ() from error
    add_sanitize(port, program, source.config, tied_names(step.model))
    plain = make_conversion(program, built, dtype, None, list(port.notes), final_config)
    assert built.model is not None
    empty(built.model, program)
    made = ModelSource(
        pipeline=source.pipeline,
        notes=tuple(port.notes),
        final_config=final_config,
        blamed=contextlib.nullcontext,
        reopen=lambda other: traced_language_model(checkpoint, other, fold_batchnorm),
        files={PORT_FILE: port.source},
    )
    return TracedModel(checkpoint, dtype, plain, dict(source.config), made, built.model)


class _Source:
    """The emitted source, run, and how its weights are made."""

    def __init__(self, step: PortedStep, config: dict[str, Any]) -> None:
        self.port, self.maps, self.config = step.port, step.maps, config
        self._namespace: Any = execute(step.port.source)

    def pipeline(self, quant: QuantRequest | None, built: Built) -> Pipeline:
        def run(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
            weights = weights_of_port(self.port, arrays, self.maps)
            model = fill(self._namespace.Model(self._namespace.ModelArgs.from_dict(self.config)), weights)
            built.config = dict(self.config)
            if quant is not None:
                built.config = quantize(model, built.config, quant, built)
            built.model, built.parameters = model, count_parameters(model)
            return dict(tree_flatten(model.parameters()))

        return run
