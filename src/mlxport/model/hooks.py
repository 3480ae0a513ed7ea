"""Calls of the modules of an MLX model, seen as they happen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

__all__ = ["first_array", "watching_mlx"]

Keep = Callable[[str], bool]
Seen = Callable[[str, str, Any, Any], None]


def first_array(value: Any, kind: type = mx.array) -> Any:
    """The first instance of ``kind`` in nested arguments or results, None where there is none."""
    if isinstance(value, kind):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    elif hasattr(value, "to_tuple"):
        value = value.to_tuple()
    if isinstance(value, (tuple, list)):
        return next((found for item in value if (found := first_array(item, kind)) is not None), None)
    return None


def _watched(cls: type, record: Callable[[Any, str, Any, Any], None]) -> type:
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
def watching_mlx(model: Any, keep: Keep, seen: Seen) -> Iterator[None]:
    """Call ``seen`` with path, class name, arguments and result of each call of a module that ``keep`` accepts.

    The model itself has the path ``""``, an embedding used as output head one that ends in ``.as_linear``. Results are
    as the module returned them, not evaluated.
    """
    kept: dict[int, tuple[str, Any, type]] = {}
    classes: dict[type, type] = {}

    def record(module: Any, suffix: str, arguments: Any, result: Any) -> None:
        seen(kept[id(module)][0] + suffix, type(module).__name__, arguments, result)

    for path, module in model.named_modules():
        if keep(path) and isinstance(module, nn.Module) and callable(module) and id(module) not in kept:
            kept[id(module)] = (path, module, type(module))
    for _, module, cls in kept.values():
        module.__class__ = classes.setdefault(cls, _watched(cls, record))
    try:
        yield
    finally:
        for _, module, cls in kept.values():
            module.__class__ = cls
