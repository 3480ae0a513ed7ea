"""What is trained: scales and biases of linear modules, and norms, as small changes of what is stored.

A group computes ``scale * code + bias``. Its changes are those of its last value, by the scale, and of its middle one:
two directions that hardly depend on each other, both in steps from one code to the next. So one learning rate serves
all groups, layers and numbers of bits; norms move in parts that are as small as such a step is of the largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxport.quant import is_linear

__all__ = ["Trainable", "trainables"]

Changes = Mapping[str, mx.array]


@dataclass(frozen=True)
class Trainable:
    """One module's parameters.

    Attributes:
        path: The module's path.
        module: The module itself.
        start: Its trained parameters as they were stored, by name, in their dtype.
        middle: The middle code of a linear module, the typical one of all modules for a norm.
        dtype: What the model computes in.
    """

    path: str
    module: nn.Module
    start: Mapping[str, mx.array]
    middle: float
    dtype: mx.Dtype = mx.float32

    def zeros(self) -> dict[str, mx.array]:
        """The changes of a module that is as it was."""
        return {f"{self.path}.{name}": mx.zeros(value.shape) for name, value in self.start.items()}

    def values(self, changes: Changes) -> dict[str, mx.array]:
        """Parameters by name after the changes, float32."""
        found = {name: changes[f"{self.path}.{name}"] for name in self.start}
        if "scales" not in self.start:
            wide = {name: value.astype(mx.float32) for name, value in self.start.items()}
            return {name: value + _unit(value) / self.middle * found[name] for name, value in wide.items()}
        scales, biases = (self.start[name].astype(mx.float32) for name in ("scales", "biases"))
        new = scales * (1 + found["scales"] / self.middle)
        shift = self.middle * (scales - new) + mx.abs(scales) * found["biases"]
        return {"scales": new, "biases": biases + shift}

    def stored(self, changes: Changes) -> dict[str, mx.array]:
        """Tensors of the output after the changes, by their full names, as they are stored."""
        values = self.values(changes)
        return {f"{self.path}.{name}": value.astype(self.start[name].dtype) for name, value in values.items()}

    def install(self, values: Mapping[str, mx.array]) -> None:
        """Put parameters into the module."""
        for name, value in values.items():
            self.module[name] = value


def _unit(value: mx.array) -> mx.array:
    """The size of a norm's weight: its root mean square, or 1 for one that is stored less 1."""
    mean = mx.sqrt(mx.mean(mx.square(value)))
    return mx.where(mean > 0.1, mean, 1.0)


def trainables(
    model: nn.Module, read: Callable[[str], mx.array], dtype: mx.Dtype, prefix: str = ""
) -> Iterator[Trainable]:
    """The trained modules of a model, in order.

    Args:
        model: The model, or a part of it.
        read: Gives a tensor as it is stored.
        dtype: What the model computes in.
        prefix: The path of the part.
    """
    middles = sorted(_middle(module) for _, module in model.named_modules() if _is_trained(module))
    typical = middles[len(middles) // 2] if middles else _middle_of(4)
    for inner, module in model.named_modules():
        path = ".".join(part for part in (prefix, inner) if part)
        if _is_trained(module):
            start = {name: read(f"{path}.{name}") for name in ("scales", "biases")}
            yield Trainable(path, module, start, _middle(module), dtype)
        elif "Norm" in type(module).__name__:
            start = {name: read(f"{path}.{name}") for name in ("weight", "bias") if _vector(module.get(name))}
            if start:
                yield Trainable(path, module, start, typical, dtype)


def _is_trained(module: nn.Module) -> bool:
    return "scales" in module and "biases" in module and is_linear(getattr(module, "mode", ""))


def _middle(module: Any) -> float:
    return _middle_of(module.bits)


def _middle_of(bits: int) -> float:
    return ((1 << bits) - 1) / 2


def _vector(value: Any) -> bool:
    return isinstance(value, mx.array) and value.ndim == 1 and mx.issubdtype(value.dtype, mx.floating)
