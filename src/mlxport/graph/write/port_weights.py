"""Weights of a port from the tensors of the original module: layouts, folded expressions, torch to MLX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import torch
from mlx.utils import tree_flatten

from mlxport.graph.lower.helpers.conv import grouped_transposed_weight
from mlxport.graph.lower.layer_specs import Fold, Weight
from mlxport.graph.lower.one_function import compile_source, flat_source

__all__ = ["apply_fold", "apply_weight", "fill", "from_torch", "port_weights", "to_mlx"]


def apply_fold(fold: Fold, sources: Sequence[mx.array]) -> mx.array:
    """A constant expression, computed."""
    (value,) = compile_source(flat_source(fold.graph))(*sources)
    result: mx.array = value
    return result


def fill(model: nn.Module, weights: Mapping[str, mx.array]) -> nn.Module:
    """An emitted model with its weights, all of them, in eval mode.

    Raises:
        AssertionError: They are not those that the source asks for, which is a bug of the emitter.
    """
    expected = dict(tree_flatten(model.parameters()))
    if differing := sorted(set(expected) ^ set(weights)):
        raise AssertionError(f"the emitted model and its weights differ in {differing}")
    return model.load_weights(list(weights.items())).eval()


def port_weights(
    weights: Mapping[str, Weight], folds: Mapping[str, Fold], original: Callable[[str], mx.array]
) -> dict[str, mx.array]:
    """The port's parameters by path.

    Args:
        weights: How each is made.
        folds: Constant expressions; one may have the name of a tensor of the module that it takes the place of.
        original: A tensor of the module by its name.
    """
    made: dict[str, mx.array] = {}

    def folded(name: str) -> mx.array:
        if name not in made:
            made[name] = apply_fold(folds[name], [original(part) for part in folds[name].sources])
        return made[name]

    return {
        path: apply_weight(weight, [folded(name) if name in folds else original(name) for name in weight.sources])
        for path, weight in weights.items()
    }


def apply_weight(weight: Weight, sources: Sequence[mx.array]) -> mx.array:
    """A weight in the form that its MLX layer has; see ``lower.layer_specs.Weight``."""
    first, args = sources[0], weight.args
    match weight.op:
        case "":
            return first
        case "move":
            return mx.contiguous(mx.moveaxis(first, *args))
        case "add":
            return sources[0] + sources[1]
        case "tail":
            return first[-args[0] :]
        case "grouped":  # (C_in, C_out / groups, ...) to (C_out, ..., C_in / groups)
            return grouped_transposed_weight(first, *args)
        case "gru_bias":  # the candidate's recurrent bias stays apart: it is inside of the reset gate
            gates = args[0]
            return mx.concatenate([sources[0][:gates] + sources[1][:gates], sources[0][gates:]])
        case "heads":
            heads, start, stop, turned = args
            part = first.reshape(heads, -1, first.shape[-1])[:, start:stop]
            return mx.contiguous(part.swapaxes(1, 2) if turned else part)
    raise AssertionError(f"unknown transformation {weight.op!r}")


def from_torch(tensor: torch.Tensor) -> mx.array:
    """A torch tensor as an MLX array; float64 becomes float32, complex128 complex64."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if tensor.dtype is torch.bfloat16:
        return mx.array(tensor.view(torch.uint16).numpy()).view(mx.bfloat16)
    if tensor.dtype in (torch.float64, torch.complex128):
        tensor = tensor.to(torch.float32 if tensor.dtype is torch.float64 else torch.complex64)
    return mx.array(tensor.numpy())


def to_mlx(value: Any) -> Any:
    """``value`` with every torch tensor in it as an MLX array."""
    from torch.utils import _pytree as pytree

    return pytree.tree_map(lambda item: from_torch(item) if isinstance(item, torch.Tensor) else item, value)
