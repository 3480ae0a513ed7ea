"""Dataclasses among a module's inputs and outputs, which torch.export takes once it knows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["Attribute", "known_dataclasses"]


class Attribute(str):
    """A step to a part of a nested input that is an attribute, not an item."""


@contextmanager
def known_dataclasses(module: torch.nn.Module, inputs: Any) -> Iterator[None]:
    """Register the dataclasses in ``inputs``, and those that ``module`` returns when it is called in this context.

    torch keeps them registered.
    """
    _register(inputs)
    hook = module.register_forward_hook(lambda module, args, output: _register(output))
    try:
        yield
    finally:
        hook.remove()


def _register(value: Any) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value) not in pytree.SUPPORTED_NODES:
            torch.export.register_dataclass(type(value))
        for field in dataclasses.fields(value):
            _register(getattr(value, field.name))
    elif isinstance(value, dict):
        _register(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            _register(item)
