"""Calls of the original and of its port, on inputs of their own, and what each call leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import mlx.core as mx
import mlx.nn as nn
import torch
from torch.utils import _pytree as pytree

from mlxport.graph.capture.examples import Example, output_arrays, output_leaves
from mlxport.graph.write.port_weights import to_mlx
from mlxport.parity.held_state import HeldState, StateChange
from mlxport.parity.tied_choices import TiedChoices

__all__ = ["CallResult", "OriginalCalls", "call_original", "call_port", "state_kept"]

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

    @property
    def has_only_nan(self) -> bool:
        """Whether an output is nothing but NaN."""
        return any(isinstance(leaf, torch.Tensor) and _only_nan(leaf) for leaf in self.outputs.values())


@dataclass(frozen=True)
class OriginalCalls:
    """Calls of one copy of the original, as it is before its first call; each finds what the one before has left.

    Attributes:
        calls: The inputs of each and what it gives, at least of one.
        change: What the first call has changed of what the module holds.
        note: Why a later call is not among them; empty if none was wanted, or all are.
        ties: What is to be said of choices among equal values; empty without such.
    """

    calls: Sequence[tuple[Example, CallResult[torch.Tensor]]]
    change: StateChange
    note: str = ""
    ties: str = ""

    @property
    def first(self) -> CallResult[torch.Tensor]:
        """What the first call gives."""
        return self.calls[0][1]


def call_original(
    fresh: Callable[[], torch.nn.Module], example: Example, later: Sequence[Example] = ()
) -> OriginalCalls:
    """Call the original, as it is before its first call, in float32.

    Args:
        fresh: Makes it.
        example: Inputs of the first call.
        later: Inputs of more calls, which are made only if the first has changed what the module holds: a module that
            holds nothing gives what it gave before.
    """
    original, ties = fresh(), TiedChoices()
    before = HeldState(original)
    calls = [(example, _called(original, example, ties))]
    change = HeldState(original).change_since(before)
    note = ""
    for other in later if change else ():
        try:
            result = _called(original, other, ties)
        except Exception as error:  # the original's own limits on how often it is called
            note = f"{other.name} not compared: the original raises {type(error).__name__}"
            break
        if result.has_only_nan:
            note = f"{other.name} not compared: the original gives nothing but NaN"
            break
        calls.append((other, result))
    return OriginalCalls(calls, change, note, ties.note())


def _called(original: Callable[..., Any], example: Example, ties: TiedChoices) -> CallResult[torch.Tensor]:
    given = example.copied(torch.float32)
    inputs = pytree.tree_leaves((given.args, given.kwargs))  # a call may take them out of their containers
    with torch.no_grad(), ties:
        leaves = output_leaves(original(*given.args, **given.kwargs))
    before = pytree.tree_leaves((example.args, example.kwargs))
    # Copies: what a module also holds may be written by its next call.
    outputs = {name: leaf.detach().clone() for name, leaf in leaves.items() if isinstance(leaf, torch.Tensor)}
    pairs = enumerate(zip(before, inputs, strict=True))
    return CallResult(outputs, {index: now for index, (then, now) in pairs if _changed(then, now)})


def _only_nan(tensor: torch.Tensor) -> bool:
    """Whether there is no number in it, and something that should be one."""
    return tensor.numel() > 0 and bool(torch.isnan(tensor).all())


def _changed(then: Any, now: Any) -> bool:
    """Whether an input holds other values than before the call; of one that has another shape none are compared."""
    if not isinstance(now, torch.Tensor) or (then.shape, then.stride()) != (now.shape, now.stride()):
        return False
    then = then.to(now.dtype)
    return not bool(((then == now) | ((then != then) & (now != now))).all())


@contextmanager
def state_kept(ported: nn.Module) -> Iterator[None]:
    """Leave a port as it was before its first call: what it has written to its arrays is put back."""
    state = ported.parameters()
    try:
        yield
    finally:
        ported.update(state)


def call_port(ported: nn.Module, example: Example, written: Mapping[int, Any]) -> CallResult[mx.array]:
    """Call the port, on what the call before has left.

    Args:
        ported: The port.
        example: Its inputs, torch's.
        written: The inputs to look at afterwards.
    """
    args, kwargs = to_mlx(example.args), to_mlx(example.kwargs)
    inputs = pytree.tree_leaves((args, kwargs))
    outputs = output_arrays(ported(*args, **kwargs))
    changed = {index: inputs[index] for index in written}
    mx.eval(outputs, changed)
    return CallResult(outputs, changed)
