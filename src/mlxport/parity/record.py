"""Inputs and outputs of modules on both sides, in the order in which the calls end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch

__all__ = ["Record", "recording_mlx", "recording_torch"]

Array = np.ndarray[Any, Any]
Keep = Callable[[str], bool]


@dataclass(frozen=True)
class Record:
    """One call of one module; the last call of a path replaces earlier ones.

    Attributes:
        path: Where the module is in its model; ``….as_linear`` for an embedding used as output head.
        kind: Its class.
        input: First array argument, float32.
        output: First array that it returns, float32.
    """

    path: str
    kind: str
    input: Array | None
    output: Array | None


def _first(value: Any, kind: type) -> Any:
    """The first instance of ``kind`` in nested arguments."""
    if isinstance(value, kind):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    elif hasattr(value, "to_tuple"):
        value = value.to_tuple()
    if isinstance(value, (tuple, list)):
        return next((found for item in value if (found := _first(item, kind)) is not None), None)
    return None


def _torch_array(value: Any) -> Array | None:
    tensor = _first(value, torch.Tensor)
    return None if tensor is None else np.array(tensor.detach().to(torch.float32).numpy())


def _mlx_array(value: Any) -> Array | None:
    array = _first(value, mx.array)
    return None if array is None else np.array(array.astype(mx.float32))


@contextlib.contextmanager
def recording_torch(model: Any, keep: Keep) -> Iterator[dict[str, Record]]:
    """Record the modules whose path ``keep`` accepts, while the context lasts."""
    records: dict[str, Record] = {}

    def hook(path: str) -> Callable[..., None]:
        def record(module: Any, args: Any, kwargs: Any, result: Any) -> None:
            records.pop(path, None)
            records[path] = Record(path, type(module).__name__, _torch_array((args, kwargs)), _torch_array(result))

        return record

    handles = [
        module.register_forward_hook(hook(path), with_kwargs=True)
        for path, module in model.named_modules()
        if path and keep(path)
    ]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def _recorder(cls: type, record: Callable[[Any, str, Any, Any], None]) -> type:
    """A subclass that reports its calls: MLX modules have no hooks, and an instance's ``__call__`` is its class's."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = cls.__call__(self, *args, **kwargs)  # type: ignore[operator]
        record(self, "", (args, kwargs), result)
        return result

    def as_linear(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = cls.as_linear(self, *args, **kwargs)  # type: ignore[attr-defined]
        record(self, ".as_linear", (args, kwargs), result)
        return result

    body = {"__call__": call, **({"as_linear": as_linear} if hasattr(cls, "as_linear") else {})}
    return type(cls.__name__, (cls,), body)


@contextlib.contextmanager
def recording_mlx(model: Any, keep: Keep) -> Iterator[dict[str, Record]]:
    """Record the modules whose path ``keep`` accepts, while the context lasts."""
    records: dict[str, Record] = {}
    kept: dict[int, tuple[str, Any, type]] = {}
    classes: dict[type, type] = {}

    def record(module: Any, suffix: str, arguments: Any, result: Any) -> None:
        path = kept[id(module)][0] + suffix
        records.pop(path, None)
        records[path] = Record(path, type(module).__name__, _mlx_array(arguments), _mlx_array(result))

    for path, module in model.named_modules():
        if path and keep(path) and isinstance(module, nn.Module) and callable(module) and id(module) not in kept:
            kept[id(module)] = (path, module, type(module))
    for _, module, cls in kept.values():
        module.__class__ = classes.setdefault(cls, _recorder(cls, record))
    try:
        yield records
    finally:
        for _, module, cls in kept.values():
            module.__class__ = cls
