"""Run the modules of torch's own module database through capture, lowering and MLX, and compare with torch."""

from __future__ import annotations

from typing import Any

import torch
from conformance import Outcome, run_case


def check_module(info: Any, dtype: torch.dtype = torch.float32) -> Outcome:
    """All samples of a ModuleInfo entry in eval mode; ``unexported`` where torch exports none of them."""
    torch.manual_seed(0)
    passed = 0
    refused = Outcome("unexported", "no samples")
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False)
    for index, sample in enumerate(inputs):
        if sample.forward_input is None:
            continue
        module = build(info.module_cls, sample, dtype)
        outcome = run_case(module, sample.forward_input.args, sample.forward_input.kwargs)
        if outcome.status == "unexported":
            refused = outcome  # torch's own limit: there is no program to port
            continue
        if outcome.status != "pass":
            return Outcome(outcome.status, f"sample {index}: {outcome.reason}")
        passed += 1
    return Outcome("pass", f"{passed} samples") if passed else refused


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
