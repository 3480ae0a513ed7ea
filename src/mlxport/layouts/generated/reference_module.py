"""The dtype that a module computes in, and the copy of it in float32 that a port is compared with."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch.utils import _pytree as pytree

from mlxport.graph.capture.examples import Example

__all__ = ["copied", "in_float32", "main_dtype"]


def _most(module: torch.nn.Module, example: Example) -> torch.dtype:
    leaves = [leaf for leaf in pytree.tree_leaves((example.args, example.kwargs)) if isinstance(leaf, torch.Tensor)]
    found = Counter(item.dtype for item in [*module.parameters()] or leaves if item.is_floating_point())
    return max(found, key=found.__getitem__, default=torch.float32)


def main_dtype(module: torch.nn.Module, example: Example) -> str:
    """The dtype that a port mostly computes in: that of most parameters, or of most inputs where there are none."""
    main = _most(module, example)
    return str(main).removeprefix("torch.") if main in (torch.float16, torch.bfloat16) else "float32"


def in_float32(module: torch.nn.Module, example: Example) -> torch.nn.Module:
    """What a port of ``module`` is compared with: the module, or a copy where its main dtype is another one."""
    return module if _most(module, example) is torch.float32 else copied(module).float()


def copied(module: torch.nn.Module) -> torch.nn.Module:
    """A copy with tensors of its own; what a hook has computed of parameters (weight_norm) is computed anew."""
    for part in module.modules():
        for name, item in vars(part).items():
            if isinstance(item, torch.Tensor) and not item.is_leaf:  # deepcopy refuses it
                setattr(part, name, item.detach())
    return copy.deepcopy(module)
