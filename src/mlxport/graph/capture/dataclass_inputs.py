"""Dataclasses among a module's inputs and outputs, which torch.export takes once it knows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["Attribute", "known_dataclasses", "register_dataclasses"]


class Attribute(str):
    """A step to a part of a nested input that is an attribute, not an item."""


@contextmanager
def known_dataclasses(module: torch.nn.Module, inputs: Any) -> Iterator[None]:
    """Register the dataclasses in ``inputs``, and those that ``module`` returns when it is called in this context.

    torch keeps them registered.
    """
    register_dataclasses(inputs)
    hook = module.register_forward_hook(lambda module, args, output: register_dataclasses(output))
    try:
        yield
    finally:
        hook.remove()


def register_dataclasses(value: Any) -> None:
    """Let pytree see into the dataclasses in ``value``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value) not in pytree.SUPPORTED_NODES:
            torch.export.register_dataclass(type(value))
        for field in dataclasses.fields(value):
            register_dataclasses(getattr(value, field.name))
    elif isinstance(value, dict):
        register_dataclasses(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            register_dataclasses(item)
