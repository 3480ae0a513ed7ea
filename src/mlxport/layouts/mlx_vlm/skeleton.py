"""A tree of MLX modules for weights that are known by name only: what can be quantized is told by what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

__all__ = ["linear_of", "module_tree"]

_EMBEDDINGS = ("embed_tokens", "wte", "pos_embed", "position_embedding")


class HeldPart(nn.Module):  # type: ignore[misc]
    """A module that holds others, or a parameter that no layer of MLX has."""


class NormWeights(HeldPart):
    """What has one weight for each channel."""


class ConvWeights(HeldPart):
    """What has weights of three dimensions and more."""


def module_tree(weights: Mapping[str, mx.array]) -> nn.Module:
    """Modules with these weights at their paths; a matrix with nothing but a bias beside it is a linear layer.

    Args:
        weights: Path, joined by dots, to the array.
    """
    return _module("", tree_unflatten(list(weights.items())))


def linear_of(embeddings: nn.Module) -> nn.Module:
    """A linear layer with the matrix of embeddings, packed as it is there."""
    kind: Any = nn.QuantizedLinear if "scales" in embeddings else nn.Linear
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    for name in ("weight", "scales", "biases", "group_size", "bits", "mode"):
        if (value := getattr(embeddings, name, None)) is not None:
            setattr(module, name, value)
    return module  # type: ignore[no-any-return]


def _module(name: str, node: Mapping[str, Any]) -> nn.Module:
    module = _leaf(name, node)
    for key, value in node.items():
        setattr(module, key, _value(key, value))
    return module


def _leaf(name: str, node: Mapping[str, Any]) -> nn.Module:
    """An empty module of the kind that these parameters are of; a layer that is made draws no random numbers."""
    weight = node.get("weight")
    kind: Any = HeldPart
    if isinstance(weight, mx.array) and node.keys() <= {"weight", "bias"}:
        kind = NormWeights if weight.ndim < 2 else ConvWeights if weight.ndim > 2 else nn.Linear
        kind = nn.Embedding if name in _EMBEDDINGS else kind
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    return module


def _value(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_value(name, item) for item in value]
    return _module(name, value) if isinstance(value, dict) else value
