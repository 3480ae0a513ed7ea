"""Copies of a module that share what need not be copied: to capture, to run once, to compare a port with."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch

__all__ = ["copied", "hollow_copy"]


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
