"""What the leaves of example inputs are called: by their parameter and their place in it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["input_leaves", "named_leaves", "tensor_names"]


def input_leaves(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of the inputs by the name of their parameter and, where it is nested, their place in it."""
    found: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            for key, inner in value.items():
                found.update(named_leaves(key, inner))
        else:
            found.update(named_leaves(name, value))
    return found


def named_leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Leaves of one value, by ``name`` and their place in it."""
    leaves, _ = pytree.tree_flatten_with_path(value)
    for path, leaf in leaves:
        parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
        yield ".".join([name, *parts]), leaf


def tensor_names(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The tensors among the leaves."""
    found = input_leaves(signature, args, kwargs)
    return {name: leaf for name, leaf in found.items() if isinstance(leaf, torch.Tensor)}
