"""One call of the original and of its port, on inputs of their own, and what each call leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import mlx.core as mx
import mlx.nn as nn
import torch
from torch.utils import _pytree as pytree

from mlxport.graph.capture.examples import Example, output_arrays, output_leaves
from mlxport.graph.write.port_weights import to_mlx

__all__ = ["CallResult", "call_original", "call_port"]

Array = TypeVar("Array")


@dataclass(frozen=True)
class CallResult(Generic[Array]):
    """What a call gives.

    Attributes:
        outputs: Arrays by their place in what is returned.
        written: Inputs that the original's call has changed, by the index of the leaf.
    """

    outputs: Mapping[str, Array]
    written: Mapping[int, Array]


def call_original(fresh: Callable[[], Callable[..., Any]], example: Example) -> CallResult[torch.Tensor]:
    """Call the original, as it is before its first call, in float32."""
    given = example.copied(torch.float32)
    inputs = pytree.tree_leaves((given.args, given.kwargs))  # a call may take them out of their containers
    with torch.no_grad():
        leaves = output_leaves(fresh()(*given.args, **given.kwargs))
    before = pytree.tree_leaves((example.args, example.kwargs))
    outputs = {name: leaf.detach() for name, leaf in leaves.items() if isinstance(leaf, torch.Tensor)}
    pairs = enumerate(zip(before, inputs, strict=True))
    return CallResult(outputs, {index: now for index, (then, now) in pairs if _changed(then, now)})


def _changed(then: Any, now: Any) -> bool:
    """Whether an input holds other values than before the call; a new shape alone is not the values' business."""
    if not isinstance(now, torch.Tensor) or then.shape != now.shape:
        return False
    then = then.to(now.dtype)
    return not bool(((then == now) | ((then != then) & (now != now))).all())


def call_port(ported: nn.Module, example: Example, written: Mapping[int, Any]) -> CallResult[mx.array]:
    """Call the port, and leave it as it is before its first call: what it writes to its arrays is put back.

    Args:
        ported: The port.
        example: Its inputs, torch's.
        written: The inputs to look at afterwards.
    """
    args, kwargs = to_mlx(example.args), to_mlx(example.kwargs)
    inputs = pytree.tree_leaves((args, kwargs))
    state = ported.parameters()
    try:
        outputs = output_arrays(ported(*args, **kwargs))
        changed = {index: inputs[index] for index in written}
        mx.eval(outputs, changed)
    finally:
        ported.update(state)
    return CallResult(outputs, changed)
