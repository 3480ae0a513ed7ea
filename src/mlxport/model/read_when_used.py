"""A model in MLX whose parameters are read each time that they are used: its own code and kernels, not its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlxport.model.hooks import answering, swap_classes
from mlxport.model.lazy_parameters import parameters_of, wide_on_cpu

__all__ = ["Unkept", "read_when_used"]


class Unkept(Mapping[str, mx.array]):
    """Unevaluated arrays by name, each handed out once: what was evaluated would stay in memory with its array.

    Args:
        make: Makes all of them; called anew when one is asked for again.
    """

    def __init__(self, make: Callable[[], Mapping[str, mx.array]]) -> None:
        self._make = make
        self._left = dict(make())
        self._names = tuple(self._left)

    def __getitem__(self, name: str) -> mx.array:
        if name not in self._left and name in self._names:
            self._left = dict(self._make())
        return self._left.pop(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_when_used(model: nn.Module, arrays: Mapping[str, mx.array]) -> nn.Module:
    """Have every module of ``model`` take its own parameters from ``arrays`` and evaluate what it returns.

    What the modules hold says the dtype that a parameter is cast to and is never evaluated, so it should be lazy; on
    MLX's CPU that becomes float32, in which it computes up to ten times as fast. None may write to its parameters.

    Args:
        model: Any model of mlx.nn's modules; it is changed.
        arrays: By the paths of its parameters, unevaluated whenever they are asked for.
    """
    changes = []
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        own = {key: name for key in module if (name := f"{prefix}{key}") in arrays}
        if own:
            changes.append((module, _reading(type(module), own, arrays)))
    swap_classes(changes)
    model.update(tree_unflatten([(name, wide_on_cpu(name, array)) for name, array in parameters_of(model)]))
    return model


def _reading(cls: type, own: Mapping[str, str], arrays: Mapping[str, mx.array]) -> type:
    """A subclass whose dictionary gives the parameters ``own`` from ``arrays``, as attributes too."""

    def read(module: Any, key: Any, held: Any) -> Any:
        if key not in own or not isinstance(held, mx.array):
            return held
        array = arrays[own[key]]
        return array if array.dtype == held.dtype else array.astype(held.dtype)

    def items(module: Any) -> list[tuple[str, Any]]:
        return [(key, read(module, key, held)) for key, held in dict.items(module)]

    return answering(
        cls,
        _evaluated,
        __getitem__=lambda module, key: read(module, key, dict.__getitem__(module, key)),
        get=lambda module, key, default=None: read(module, key, dict.get(module, key, default)),
        items=items,
    )


def _evaluated(module: Any, _: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of a call, after which no graph holds the parameters."""
    result = call(*args, **kwargs)
    mx.eval(result)
    return result
