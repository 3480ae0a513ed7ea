"""The dtype that a module computes in, and copies of it: to capture, and in float32 to compare a port with."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mlxport.graph.capture.examples import Example

__all__ = ["copied", "hollow_copy", "in_float32", "main_dtype"]


def _most(module: torch.nn.Module, example: Example) -> torch.dtype:
    leaves = [leaf for leaf in pytree.tree_leaves((example.args, example.kwargs)) if isinstance(leaf, torch.Tensor)]
    found = Counter(item.dtype for item in [*module.parameters()] or leaves if item.is_floating_point())
    return max(found, key=found.__getitem__, default=torch.float32)


def main_dtype(module: torch.nn.Module, example: Example) -> str:
    """The dtype that a port mostly computes in: that of most parameters, or of most inputs where there are none."""
    main = _most(module, example)
    return str(main).removeprefix("torch.") if main in (torch.float16, torch.bfloat16) else "float32"


def in_float32(module: torch.nn.Module, example: Example, written: Collection[str] = ()) -> torch.nn.Module:
    """What a port of ``module`` is compared with, in float32: a copy, so that running it leaves the module as it is.

    Args:
        module: The original.
        example: Inputs of it, which say its dtype where it has no parameters.
        written: Names of the parameters that its forward writes; all others are shared with the copy.
    """
    if _most(module, example) is not torch.float32:
        return copied(module).float()
    named = list(module.named_parameters(remove_duplicate=False))
    own = {id(parameter) for name, parameter in named if name in written}
    return copied(module, [parameter for _, parameter in named if id(parameter) not in own])


def hollow_copy(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of the tree with the module's own tensors in it: for captures, which compute nothing."""
    return copied(module, [*module.parameters(), *module.buffers()])


def copied(module: torch.nn.Module, shared: Iterable[torch.Tensor] = ()) -> torch.nn.Module:
    """A copy with tensors of its own, but for ``shared``; what no copy can be made of (a lock, a file) is shared too.

    What a hook has computed of parameters (weight_norm) is computed anew.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for part in module.modules():
        for item in vars(part).values():
            if isinstance(item, torch.Tensor) and not item.is_leaf:  # deepcopy refuses it
                memo.setdefault(id(item), item.detach().clone())
    try:
        return copy.deepcopy(module, dict(memo))
    except Exception:  # an attribute that cannot be copied, whatever it raises
        return copy.deepcopy(module, {**memo, **_uncopyable(module, memo)})


def _uncopyable(module: torch.nn.Module, memo: Mapping[int, Any]) -> dict[int, Any]:
    """Attributes of modules that cannot be copied by themselves."""
    found: dict[int, Any] = {}
    known = {**memo, **{id(part): part for part in module.modules()}}
    for part in module.modules():
        for name, item in vars(part).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                copy.deepcopy(item, dict(known))
            except Exception:
                found[id(item)] = item
    return found
