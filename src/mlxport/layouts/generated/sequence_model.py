"""A transformers model of an encoder and a decoder, written as MLX source that keeps what it has read and written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mlxport.graph.build import Port
from mlxport.graph.capture.examples import Example
from mlxport.layouts.base import LayoutOptions
from mlxport.layouts.conversion import Conversion, ModelSource, TracedModel, empty, make_conversion
from mlxport.layouts.generated import hf_model
from mlxport.layouts.generated.opening import PortedStep, port_step
from mlxport.layouts.generated.sequence_step import giving_logits
from mlxport.layouts.generated.weights_trace import (
    GeneratedConversion,
    MissingWeights,
    final_config,
    port_config,
    port_pipeline,
    weights_of_port,
)
from mlxport.layouts.quantizing import Built
from mlxport.transform import lazy_arrays, trace
from mlxport.types import Checkpoint

__all__ = ["open_sequence_model", "traced_sequence_model"]


@dataclass(frozen=True)
class _SequenceModel(TracedModel):
    """Its conversions bring their own code.

    Attributes:
        generated: Adds that to a conversion.
    """

    generated: Callable[[Conversion], GeneratedConversion] = field(kw_only=True, repr=False)

    def _made(self, conversion: Conversion) -> Conversion:
        return self.generated(replace(conversion, model=self))


def open_sequence_model(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    """Port the model of an encoder and a decoder that a checkpoint is of; its weights stay on disk.

    Raises:
        UnsupportedError: transformers has no such model, or mlx-lm's caches cannot hold what it remembers.
        WeightsError: The checkpoint has not the tensors that the model wants.
    """
    return traced_sequence_model(checkpoint, options.dtype, options.fold_batchnorm).conversion(options.quant)


def traced_sequence_model(checkpoint: Checkpoint, asked: str = "auto", fold_batchnorm: bool = False) -> TracedModel:
    """The port, run once on placeholders.

    Args:
        checkpoint: The opened source.
        asked: Dtype, as of ``convert``.
        fold_batchnorm: As of ``convert``.

    Raises:
        MlxportError: As of ``open_sequence_model``.
    """
    step = port_step(checkpoint, asked, fold_batchnorm)
    port, built = step.port, Built({})
    config = port_config(port, checkpoint.config)
    pipeline = port_pipeline(port, step.maps, config)
    try:
        program = trace(pipeline(None, built), checkpoint.tensors)
    except MissingWeights as error:
        raise step.names_differ() from error
    plain = make_conversion(program, built, step.dtype, None, list(port.notes), final_config)
    assert built.model is not None
    empty(built.model, program)
    source = ModelSource(
        pipeline, tuple(port.notes), final_config, contextlib.nullcontext,
        reopen=lambda other: traced_sequence_model(checkpoint, other, fold_batchnorm),
    )  # fmt: skip
    return _SequenceModel(checkpoint, step.dtype, plain, config, source, built.model, generated=_generated(step))


def _generated(step: PortedStep) -> Callable[[Conversion], GeneratedConversion]:
    """What adds the source, and what it is verified with, to a conversion."""
    port, checkpoint = step.port, step.checkpoint
    example = _example(port)

    def original() -> Any:
        return giving_logits(hf_model.empty_model(checkpoint, dtype=torch.float32, attention="eager"))

    def generated(made: Conversion) -> GeneratedConversion:
        plain = {item.name: getattr(made, item.name) for item in fields(Conversion)}
        return GeneratedConversion(
            **plain, port=port, example=example, original=original,
            unquantized=lambda: weights_of_port(port, lazy_arrays(checkpoint.tensors), step.maps),
            weights_of=checkpoint,
        )  # fmt: skip

    return generated


def _example(port: Port) -> Example:
    """Tokens of both sides; the cache is no longer an input that a comparison may choose."""
    captured = port.captured
    names = [name for name in captured.signature.parameters if name != "cache"]
    captured.inputs[:], captured.values[:] = captured.inputs[: len(names)], captured.values[: len(names)]
    captured.in_spec = pytree.tree_flatten(((), dict.fromkeys(names, 0)))[1]
    return Example("example", (), dict(zip(names, captured.values, strict=True)))
