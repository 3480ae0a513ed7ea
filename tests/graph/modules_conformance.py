"""Port the modules of torch's own module database, and compare with torch."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from conformance import SAMPLES, Outcome, as_torch, compare
from torch.utils import _pytree as pytree

import mlxport
from mlxport.errors import UnsupportedError, VerificationError
from mlxport.graph.capture.export import CaptureError
from mlxport.graph.write.port_weights import to_mlx


def check_module(info: Any, dtype: torch.dtype = torch.float32) -> Outcome:
    """The first samples of a ModuleInfo entry in eval mode; ``unexported`` where torch exports none of them."""
    torch.manual_seed(0)
    passed = 0
    refused = Outcome("unexported", "no samples")
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False)
    usable = (sample for sample in inputs if sample.forward_input is not None)
    for index, sample in enumerate(islice(usable, SAMPLES)):
        module = build(info.module_cls, sample, dtype)
        outcome = check_port(module, sample.forward_input.args, sample.forward_input.kwargs)
        if outcome.status == "unexported":
            refused = outcome  # torch's own limit: there is no program to port
            continue
        if outcome.status != "pass":
            return Outcome(outcome.status, f"sample {index}: {outcome.reason}")
        passed += 1
    return Outcome("pass", f"{passed} samples") if passed else refused


def check_port(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
    """Port a module, compare its outputs with torch's on these inputs and, by ``port``, on inputs of other sizes."""
    with torch.no_grad():
        wanted = pytree.tree_leaves(module(*args, **kwargs))
    try:
        ported = mlxport.port(module, args, kwargs)
    except UnsupportedError as error:
        status = "unexported" if isinstance(error.__cause__, CaptureError) else "unsupported"
        return Outcome(status, str(error).replace("\n", " "))
    except VerificationError as error:
        return Outcome("wrong", str(error).replace("\n", " "))
    got = pytree.tree_leaves(ported(*to_mlx(args), **to_mlx(kwargs)))
    return compare([as_torch(leaf) for leaf in got], wanted)


def build(module_class: type[torch.nn.Module], sample: Any, dtype: torch.dtype) -> torch.nn.Module:
    """The sample's module in eval mode, with random parameters and running statistics."""
    arguments = sample.constructor_input
    module = module_class(*arguments.args, **arguments.kwargs).to(dtype).eval()
    with torch.no_grad():
        if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin):
            module(*sample.forward_input.args, **sample.forward_input.kwargs)
        for parameter in module.parameters():
            parameter.uniform_(-0.5, 0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.5, 0.5)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return module
