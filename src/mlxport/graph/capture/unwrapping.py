"""Wrappers around a module, and modules that torch.export does not take: what a training script has in hand."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from mlxport.errors import UnsupportedError, UsageError
from mlxport.graph.capture.capture_errors import of_subclasses

__all__ = ["check_module", "unwrapped"]


def check_module(module: Any, what: str) -> None:
    """Refuse what is no module, and TorchScript, anywhere in the tree.

    Raises:
        UsageError: It is no ``torch.nn.Module``, or has weights without values.
        UnsupportedError: It is, or holds, a scripted or traced module, or a weight that is no plain tensor.
    """
    if not isinstance(module, torch.nn.Module):
        raise UsageError(
            f"{what}: expected a torch.nn.Module, got {type(module).__name__}",
            hint="put what it computes into the forward of a torch.nn.Module",
        )
    _check_values(module, what)
    if special := of_subclasses({**dict(module.named_parameters()), **dict(module.named_buffers())}):
        raise UnsupportedError(f"a port of {type(module).__name__} cannot read its weights", hint=special)
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            where = f"its module {path} is" if path else "this is"
            raise UnsupportedError(
                f"{what}: {where} TorchScript (torch.jit.script, torch.jit.trace or torch.jit.load), "
                "which torch.export cannot capture",
                hint="give the nn.Module that it was made from, its weights loaded: "
                "module.load_state_dict(scripted.state_dict())",
            )


def _check_values(module: torch.nn.Module, what: str) -> None:
    """Refuse weights without values: of lazy modules, and on ``meta``."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(tensor):
            kind = type(module.get_submodule(name.rpartition(".")[0])).__name__
            raise UsageError(
                f"{what}: {name} has no size yet ({kind}), it gets one when the module is first called",
                hint="call the module once on the example, and load its weights, before it is ported: module(*args)",
            )
        if tensor.is_meta:
            raise UsageError(
                f"{what}: {name} is on the meta device, where tensors have no values",
                hint="give it values first: module.to_empty(device='cpu'), then module.load_state_dict(…)",
            )


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """``module`` without torch.compile, DataParallel and the like, in all of its tree, which is changed."""
    module = _inner(module)
    for part in list(module.modules()):
        for name, child in part._modules.items():
            if child is not None:
                part._modules[name] = _inner(child)
        _uncompiled(part)
    return module


def _inner(module: torch.nn.Module) -> torch.nn.Module:
    """The module that a chain of wrappers is around."""
    parallel = (
        torch.nn.DataParallel,
        torch.nn.parallel.DistributedDataParallel,
        torch.optim.swa_utils.AveragedModel,
    )
    while True:
        if isinstance(module, torch._dynamo.OptimizedModule):
            module = module._orig_mod
        elif isinstance(module, parallel):
            module = module.module
        else:
            return module


def _uncompiled(module: torch.nn.Module) -> None:
    """Take ``module.forward = torch.compile(module.forward)`` back."""
    original = getattr(vars(module).get("forward"), "_torchdynamo_orig_callable", None)
    if isinstance(original, types.MethodType):
        module.forward = types.MethodType(original.__func__, module)
