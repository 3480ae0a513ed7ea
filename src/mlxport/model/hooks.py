"""What happens to the calls of an MLX model's modules: seen, answered or computed otherwise.

MLX has no hooks, and an instance's ``__call__`` is that of its class. So modules get other classes, by ``swap_classes``
and nothing else; whoever streams, probes, watches, calibrates or trains says only what the calls shall do.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

__all__ = [
    "Answer",
    "answering",
    "first_array",
    "hooked",
    "map_arrays",
    "state_after",
    "swap_classes",
    "swapped",
    "watching",
]

# Module, name of the method (``__call__``, or ``as_linear`` of an embedding), the class's own method, and what it is
# given; what is handed back is the result of the call.
Answer = Callable[[Any, str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
Keep = Callable[[str], bool]
Seen = Callable[[str, str, Any, Any], None]

METHODS = ("__call__", "as_linear")


def swap_classes(changes: Iterable[tuple[Any, type]]) -> Callable[[], None]:
    """Give modules other classes, each the last of those that are named for it.

    Returns:
        What gives them their own again.
    """
    before: dict[int, tuple[Any, type]] = {}
    for module, cls in changes:
        before.setdefault(id(module), (module, type(module)))
        module.__class__ = cls

    def undo() -> None:
        for module, cls in before.values():
            module.__class__ = cls

    return undo


@contextlib.contextmanager
def swapped(changes: Iterable[tuple[Any, type]]) -> Iterator[None]:
    """The same while the context lasts."""
    undo = swap_classes(changes)
    try:
        yield
    finally:
        undo()


def answering(cls: type, answer: Answer, **attributes: Any) -> type:
    """A subclass whose calls, also as an output head, are answered by ``answer``."""

    def method(name: str) -> Callable[..., Any]:
        own = getattr(cls, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return answer(self, name, functools.partial(own, self), args, kwargs)

        return call

    methods = {name: method(name) for name in METHODS if hasattr(cls, name)}
    return type(cls.__name__, (cls,), {**methods, **attributes})


@contextlib.contextmanager
def hooked(modules: Iterable[Any], answer: Answer) -> Iterator[None]:
    """Have the calls of ``modules`` answered by ``answer`` while the context lasts."""
    classes: dict[type, type] = {}
    changes = []
    for module in modules:
        cls = type(module)
        if cls not in classes:
            classes[cls] = answering(cls, answer)
        changes.append((module, classes[cls]))
    with swapped(changes):
        yield


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


def state_after(given: Any, result: Any) -> mx.array | None:
    """What a block makes of the hidden states that it is given: of its results the first that is shaped like them."""
    before = first_array(given)
    found: list[mx.array] = []
    map_arrays(result, found.append)
    return next((array for array in found if before is not None and array.shape == before.shape), first_array(result))


def map_arrays(tree: Any, change: Callable[[mx.array], Any]) -> Any:
    """Nested arguments or results with their arrays changed; what is no tuple, list or dict stays as it is."""
    if isinstance(tree, mx.array):
        return change(tree)
    if isinstance(tree, dict):
        return {key: map_arrays(value, change) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_arrays(value, change) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_arrays(value, change) for value in tree)
    return tree


@contextlib.contextmanager
def watching(model: Any, keep: Keep, seen: Seen) -> Iterator[None]:
    """Call ``seen`` with path, class name, arguments and result of each call of a module that ``keep`` accepts.

    The model itself has the path ``""``, an embedding used as output head one that ends in ``.as_linear``. Results are
    as the module returned them, not evaluated.
    """
    kept: dict[int, tuple[str, Any]] = {}
    for path, module in model.named_modules():
        if keep(path) and isinstance(module, nn.Module) and callable(module):
            kept.setdefault(id(module), (path, module))

    def answer(module: Any, name: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = call(*args, **kwargs)
        suffix = "" if name == "__call__" else f".{name}"
        seen(kept[id(module)][0] + suffix, type(module).__name__, (args, kwargs), result)
        return result

    with hooked([module for _, module in kept.values()], answer):
        yield
