"""A transformers model of an encoder and a decoder, written as MLX source that keeps what it has read and written."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from mlxport.graph.build import Port
from mlxport.graph.capture.examples import Example
from mlxport.layouts.base import LayoutOptions
from mlxport.layouts.generated import hf_model
from mlxport.layouts.generated.opening import port_step
from mlxport.layouts.generated.sequence_step import giving_logits
from mlxport.layouts.generated.weights_trace import GeneratedConversion, MissingWeights, assemble
from mlxport.types import Checkpoint

__all__ = ["open_sequence_model"]


def open_sequence_model(checkpoint: Checkpoint, options: LayoutOptions) -> GeneratedConversion:
    """Port the model of an encoder and a decoder that a checkpoint is of; its weights stay on disk.

    Raises:
        UnsupportedError: transformers has no such model, or mlx-lm's caches cannot hold what it remembers.
        WeightsError: The checkpoint has not the tensors that the model wants.
    """
    step = port_step(checkpoint, options.dtype, options.fold_batchnorm)

    def original() -> Any:
        return giving_logits(hf_model.empty_model(checkpoint, dtype=torch.float32, attention="eager"))

    try:
        return assemble(
            step.port, checkpoint.tensors, step.maps, _example(step.port), original,
            dtype=step.dtype, quant=options.quant, config=checkpoint.config, weights_of=checkpoint,
        )  # fmt: skip
    except MissingWeights as error:
        raise step.names_differ() from error


def _example(port: Port) -> Example:
    """Tokens of both sides; the cache is no longer an input that a comparison may choose."""
    captured = port.captured
    names = [name for name in captured.signature.parameters if name != "cache"]
    captured.inputs[:], captured.values[:] = captured.inputs[: len(names)], captured.values[: len(names)]
    captured.in_spec = pytree.tree_flatten(((), dict.fromkeys(names, 0)))[1]
    return Example("example", (), dict(zip(names, captured.values, strict=True)))
