"""Runs of a module as torch runs it, before it is captured: an example that does not fit gets torch's own message.

A capture has no values, and its errors speak of symbols. Each run is one of a copy, so that nothing is left in the
module, and of inputs of its own.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from mlxport.graph.capture.control_flow import control_flow_captured
from mlxport.graph.capture.module_copies import copied, hollow_copy
from mlxport.graph.capture.packed_sequences import FittingStates
from mlxport.graph.capture.recurrent_modules import Untouched
from mlxport.printable import words

__all__ = ["TrialRuns", "lacks_kernel"]

_COPIED = 1 << 28  # bytes of parameters that are copied for each run; those of larger modules are only protected


class TrialRuns:
    """Runs of one module.

    Attributes:
        possible: Whether the module and its inputs have values, on this machine.
        seconds: What the longest run took.
        written: Names of the buffers that a run has changed.
    """

    def __init__(self, module: torch.nn.Module, inputs: Any) -> None:
        """Runs of ``module`` on inputs such as ``inputs``, any structure of tensors."""
        self._module = hollow_copy(module)  # a capture puts things around the module itself
        self.seconds = 0.0
        self.written: set[str] = set()
        held = [*module.parameters(), *module.buffers(), *pytree.tree_leaves(inputs)]
        self.possible = not any(isinstance(item, torch.Tensor) and _has_no_values(item) for item in held)

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The leaves of what the module gives; raises what it raises."""
        parameters = list(self._module.parameters())
        large = sum(item.nbytes for item in parameters) > _COPIED
        module = copied(self._module, parameters if large else ())
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda item: item.detach().clone(), (tuple(args), {**kwargs}))
        started = time.monotonic()
        with (
            warnings.catch_warnings(),
            torch.random.fork_rng(devices=()),
            torch.no_grad(),
            control_flow_captured(),  # attention written out takes no compiler
            Untouched(module) if large else nullcontext(),
            FittingStates(),
        ):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            leaves = pytree.tree_leaves(module(*args, **kwargs))
        self.seconds = max(self.seconds, time.monotonic() - started)
        before = dict(self._module.named_buffers(remove_duplicate=False))
        for name, buffer in module.named_buffers(remove_duplicate=False):
            if buffer is not before.get(name) and not (name in before and torch.equal(buffer, before[name])):
                self.written.add(name)
        return leaves


def lacks_kernel(error: BaseException) -> bool:
    """Whether an error is that torch cannot compute something here (half precision on a CPU), whatever the inputs."""
    return isinstance(error, NotImplementedError) or "not implemented for" in words(error)


def _has_no_values(tensor: torch.Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor) or torch.nn.parameter.is_lazy(tensor)
