"""A model whose parameters are in memory only while they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxport.errors import UnsupportedError
from mlxport.model.tensors import Tensor, whole
from mlxport.transform import float32

__all__ = ["LazyModel", "parameters_of", "placeholder", "wide_on_cpu"]

Cast = Callable[[str, mx.array], mx.array]


def parameters_of(module: nn.Module) -> list[tuple[str, mx.array]]:
    """Names and arrays of all parameters."""
    found: Any = tree_flatten(module.parameters())
    return list(found)


def placeholder(array: mx.array) -> mx.array:
    """Zeros of the same shape and dtype, without memory."""
    return mx.broadcast_to(mx.array(0, array.dtype), array.shape)


def wide_on_cpu(_: str, array: mx.array) -> mx.array:
    """MLX's CPU multiplies float32 several times as fast as what is stored, and stacks of experts in nothing else."""
    return float32(array) if mx.default_device() == mx.cpu else array


class LazyModel:
    """A model and where its parameters come from.

    Args:
        model: mlx-lm's module; what its parameters hold is let go of.
        tensors: Its parameters by name.
        cast: Given a name and an array, makes the parameter of it.

    Attributes:
        model: The module.
        shapes: Of the parameters, by name.
    """

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor], cast: Cast = lambda _, array: array) -> None:
        self.model = model
        self.tensors = tensors
        self.cast = cast
        self._placeholders = {name: placeholder(array) for name, array in parameters_of(model)}
        self.shapes = {name: tuple(array.shape) for name, array in self._placeholders.items()}
        self.release()

    def fill(self, prefix: str = "", skip: Collection[str] = ()) -> None:
        """Read the parameters whose names start so, one after the other, but those of ``skip``.

        Raises:
            UnsupportedError: One has another shape than the model's.
        """
        self._read(name for name in self.shapes if name.startswith(prefix) and name not in skip)

    def fill_outside(self, paths: Iterable[str]) -> None:
        """Read what is in none of the modules of these paths."""
        inside = tuple(f"{path}." for path in paths)
        self._read(name for name in self.shapes if not name.startswith(inside))

    def release(self, prefix: str = "") -> None:
        """Let go of the parameters whose names start so."""
        names = [name for name in self.shapes if name.startswith(prefix)]
        self.model.update(tree_unflatten([(name, self._placeholders[name]) for name in names]), strict=False)
        mx.clear_cache()

    def _read(self, names: Iterable[str]) -> None:
        for name in names:
            array = whole(self.tensors[name])
            if tuple(array.shape) != self.shapes[name]:
                raise UnsupportedError(f"{name} has shape {array.shape}, the model wants {self.shapes[name]}")
            array = self.cast(name, array)
            mx.eval(array)
            self.model.update(tree_unflatten([(name, array)]), strict=False)
            mx.clear_cache()
