"""The largest activations of an output, module by module in float32: those that float16 could not hold are found.

Weights that fit a dtype say nothing of what they compute: a sum of products beyond 65504 becomes infinite in float16,
and everything after it NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxport.model import loaded as out
from mlxport.model.hooks import watching
from mlxport.model.streaming import stream
from mlxport.model.tensors import output_refs
from mlxport.model.tokens import probe_ids
from mlxport.model_config import ModelConfig
from mlxport.parity.probe_length import probe_length

__all__ = ["FLOAT16_MOST", "Activation", "Activations", "largest_activations"]

FLOAT16_MOST = 65504.0
_NEAR = 0.5  # of it: another text may well reach the rest


@dataclass(frozen=True, slots=True)
class Activation:
    """The largest absolute value that a module was given or returned.

    Attributes:
        module: Its path in the MLX model; empty for the model itself.
        what: ``input`` or ``output``.
        value: The value; infinite or NaN where float32 does not hold it either.
    """

    module: str
    what: str
    value: float

    def __str__(self) -> str:
        shown = f"{self.value:.3g}" if isfinite(self.value) else str(self.value)
        return f"{self.what} of {self.module or 'the model'} {shown}"


@dataclass(frozen=True)
class Activations:
    """What one run over the probe text found.

    Attributes:
        tokens: Number of tokens.
        largest: The largest of all.
        beyond: One entry a module whose activations float16 cannot hold, in the order of the calls.
        near: One entry a module whose activations come near that, likewise.
    """

    tokens: int
    largest: Activation | None
    beyond: tuple[Activation, ...]
    near: tuple[Activation, ...]

    def summary(self) -> str:
        """One sentence on what float16 cannot hold, or nearly not; empty where all is well."""
        for items, what in ((self.beyond, "overflow float16"), (self.near, "come near float16's limit")):
            if items:
                shown = "; ".join(map(str, items[:4])) + (f"; and {len(items) - 4} more" if len(items) > 4 else "")
                return f"activations of {len(items)} modules {what} ({FLOAT16_MOST:.0f}): {shown}"
        return ""

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {
            "tokens": self.tokens,
            "largest": _entry(self.largest),
            "beyond_float16": [_entry(item) for item in self.beyond],
            "near_float16": [_entry(item) for item in self.near],
        }


def _entry(item: Activation | None) -> dict[str, Any] | None:
    if item is None:
        return None
    return {"module": item.module, "what": item.what, "value": item.value if isfinite(item.value) else str(item.value)}


def largest_activations(
    folder: Path, config: Mapping[str, Any], vocabulary: int, *, trust_remote_code: bool = False
) -> Activations:
    """Run an output on the probe text, in float32, each weight read from disk where it is used.

    Args:
        folder: What mlx-lm loads, with its tokenizer; without one the text is pseudo-random ids.
        config: Its configuration.
        vocabulary: Rows of its embedding.
        trust_remote_code: Whether code of the folder may run.

    Raises:
        VerificationError: mlx-lm cannot load or run it.
    """
    settings = ModelConfig(config)
    parameters = sum(prod(ref.shape) for ref in output_refs(folder).values())
    length, _ = probe_length(parameters, settings.context_length, settings.sliding_window)
    ids, _ = probe_ids(folder, vocabulary, length, trust_remote_code=trust_remote_code)
    model = out.load_output(folder, trust_remote_code=trust_remote_code, in_float32=True)
    stream(model, folder)
    found: dict[str, Activation] = {}

    def seen(path: str, _: str, arguments: Any, result: Any) -> None:
        for what, values in (("input", arguments), ("output", result)):
            value = _largest(values)
            if value is not None and (path not in found or _beyond(value, found[path].value)):
                found[path] = Activation(path, what, value)

    limit = mx.set_cache_limit(0)
    try:
        with watching(model, lambda _: True, seen):
            out.logits(model, ids[0])
    finally:
        mx.set_cache_limit(limit)
    beyond = tuple(item for item in found.values() if _beyond(item.value, FLOAT16_MOST))
    near = tuple(item for item in found.values() if _beyond(item.value, _NEAR * FLOAT16_MOST) and item not in beyond)
    most: Activation | None = None
    for item in found.values():
        if most is None or _beyond(item.value, most.value):
            most = item
    return Activations(len(ids[0]), most, beyond, near)


def _beyond(value: float, limit: float) -> bool:
    """Whether ``value`` is larger; NaN is larger than any number."""
    return not value <= limit and limit == limit


def _largest(values: Any) -> float | None:
    """The largest magnitude in the first floating array of nested values; later ones are masks and tables."""
    array = _first(values)
    if array is None or not array.size:
        return None
    most: Any = mx.max(mx.abs(array)).item()
    return float(most)


def _first(values: Any) -> mx.array | None:
    if isinstance(values, mx.array):
        return values if mx.issubdtype(values.dtype, mx.floating) else None
    if isinstance(values, Mapping):
        values = tuple(values.values())
    if isinstance(values, (tuple, list)):
        return next((found for item in values if (found := _first(item)) is not None), None)
    return None
