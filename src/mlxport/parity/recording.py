"""Inputs and outputs of modules on both sides, in the order in which the calls end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import torch

from mlxport.model.hooks import first_array, watching

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


def _torch_array(value: Any) -> Array | None:
    tensor = first_array(value, torch.Tensor)
    return None if tensor is None else np.array(tensor.detach().to(torch.float32).numpy())


def _mlx_array(value: Any) -> Array | None:
    array = first_array(value)
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


@contextlib.contextmanager
def recording_mlx(model: Any, keep: Keep) -> Iterator[dict[str, Record]]:
    """Record the modules whose path ``keep`` accepts, while the context lasts."""
    records: dict[str, Record] = {}

    def seen(path: str, kind: str, arguments: Any, result: Any) -> None:
        records.pop(path, None)
        records[path] = Record(path, kind, _mlx_array(arguments), _mlx_array(result))

    with watching(model, lambda path: bool(path) and keep(path), seen):
        yield records
