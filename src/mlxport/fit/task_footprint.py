"""What a model holds besides its weights while it is called once: from the graph of that call, without computing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxport.fit.liveness import METAL, Backend, peak_bytes
from mlxport.fit.recorded_graph import record
from mlxport.fit.stand_ins import recordable

__all__ = ["CallNeed", "need_of_call"]


@dataclass(frozen=True)
class CallNeed:
    """Of one call.

    Attributes:
        nbytes: The most that is held at once, weights apart.
        outputs: Shapes of what it gives.
    """

    nbytes: int
    outputs: tuple[tuple[int, ...], ...]


def need_of_call(
    model: nn.Module,
    inputs: Mapping[str, mx.array],
    call: Callable[..., Any] | None = None,
    backend: Backend = METAL,
) -> CallNeed | None:
    """What a call takes; None where the call cannot be recorded with inputs of these sizes.

    Args:
        model: Any module; its weights may be unevaluated, and are as before afterwards.
        inputs: Placeholders, by name.
        call: How it is called, with the inputs by name; by default the module itself.
        backend: What it runs on.
    """
    names = [name for name, _ in tree_flatten(model.parameters())]
    values = [value for _, value in tree_flatten(model.parameters())]

    def load(arrays: list[mx.array]) -> None:
        model.load_weights(list(zip(names, arrays, strict=True)), strict=False)

    def run(*given: mx.array) -> list[mx.array]:
        load(list(given[: len(names)]))
        made = (call or model)(**dict(zip(inputs, given[len(names) :], strict=True)))
        return [array for _, array in tree_flatten(made) if isinstance(array, mx.array)]

    try:
        with recordable(backend.fused):
            graph = record(run, [*values, *inputs.values()])
    except ValueError:  # the port's own check of its inputs, or a look at values
        return None
    finally:
        load(values)
    peak = peak_bytes(graph, backend, graph.inputs[: len(names)])
    return CallNeed(peak, tuple(graph.shapes[key] for key in graph.outputs))
