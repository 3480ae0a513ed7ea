"""Watch the calls of MLX modules: they have no hooks of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import mlx.nn as nn

__all__ = ["watching"]


def _watched(cls: type, seen: Callable[[Any, str, Any, Any], None]) -> type:
    """A subclass that reports its calls: an instance's ``__call__`` is its class's."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = cls.__call__(self, *args, **kwargs)  # type: ignore[operator]
        seen(self, "", (args, kwargs), result)
        return result

    def as_linear(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = cls.as_linear(self, *args, **kwargs)  # type: ignore[attr-defined]
        seen(self, ".as_linear", (args, kwargs), result)
        return result

    body = {"__call__": call, **({"as_linear": as_linear} if hasattr(cls, "as_linear") else {})}
    return type(cls.__name__, (cls,), body)


@contextlib.contextmanager
def watching(model: Any, keep: Callable[[str], bool], seen: Callable[[str, Any, Any, Any], None]) -> Iterator[None]:
    """Report calls of the modules whose path ``keep`` accepts, in the order in which they end.

    Args:
        model: An MLX module.
        keep: Whether a path is watched; the model itself has the path ``""``.
        seen: Called with the path (``….as_linear`` for an embedding used as output head), the module, its arguments
            (positional ones, keywords) and what it returned.
    """
    kept: dict[int, tuple[str, Any, type]] = {}
    classes: dict[type, type] = {}

    def report(module: Any, suffix: str, arguments: Any, result: Any) -> None:
        seen(kept[id(module)][0] + suffix, module, arguments, result)

    for path, module in model.named_modules():
        if keep(path) and isinstance(module, nn.Module) and callable(module) and id(module) not in kept:
            kept[id(module)] = (path, module, type(module))
    for _, module, cls in kept.values():
        module.__class__ = classes.setdefault(cls, _watched(cls, report))
    try:
        yield
    finally:
        for _, module, cls in kept.values():
            module.__class__ = cls
