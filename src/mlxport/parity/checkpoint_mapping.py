"""Parameters of a transformers model read from a checkpoint in torch, by transformers' own converters, row by row."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers.core_model_loading import MergeModulelist, Transpose

from mlxport.layouts.generated.hf_weights import ConverterGroup, assign
from mlxport.types import Checkpoint, TensorRef

__all__ = ["Read", "Recipe", "parameter_recipes"]

Read = Callable[[TensorRef, int, int | None], torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """How one parameter is made.

    Attributes:
        plain: The checkpoint tensor that it is, unchanged; None where it is converted.
        convert: The parameter, or the slice of one expert (with a leading axis of 1) where an index is given.
        read: Rows of a checkpoint tensor.
        per_row: Whether ``convert`` can make single experts.
    """

    plain: TensorRef | None
    read: Read
    convert: Callable[[int | None], torch.Tensor]
    per_row: bool = False

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the parameter, None where it is only known once it is made."""
        return None if self.plain is None else tuple(self.plain.shape)


@dataclass
class _Conversion:
    """A group of checkpoint tensors and how their rows are read."""

    group: ConverterGroup
    read: Read

    def run(self, model: Any, expert: int | None) -> dict[str, torch.Tensor]:
        """Target name to tensor, of one expert only where asked for."""
        converter = deepcopy(self.group.converter)
        for pattern, refs in self.group.sources.items():
            if expert is None:
                chosen = [_later(self.read, ref, None) for ref in refs]
            elif len(refs) > 1:
                chosen = [_later(self.read, refs[expert], None)]
            else:
                chosen = [_later(self.read, refs[0], expert)]
            for ref, read in zip(refs, chosen, strict=False):
                converter.add_tensor(self.group.first, ref.name, pattern, read)
        result = converter.convert(self.group.first, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in result.items()}

    @property
    def per_expert(self) -> bool:
        """Whether experts are independent: each has its own tensors, or a row of one, and no step mixes them."""
        operations, counts = self.group.converter.operations, {len(refs) for refs in self.group.sources.values()}
        merged = isinstance(operations[0], MergeModulelist) and operations[0].dim == 0
        if merged != (max(counts) > 1) or len(counts) != 1:
            return False
        rest = operations[1:] if merged else operations
        if not merged and any(len(refs[0].shape) != 3 for refs in self.group.sources.values()):
            return False
        return all(_keeps_axis_0(operation) for operation in rest)


def _keeps_axis_0(operation: Any) -> bool:
    if isinstance(operation, Transpose):
        return 0 not in (operation.dim0, operation.dim1)
    return getattr(operation, "dim", 0) != 0


def _later(read: Read, ref: TensorRef, row: int | None) -> Callable[[], torch.Tensor]:
    """What ``materialize_tensors`` calls: the tensor itself, or one row of it with its axis."""
    return lambda: read(ref, 0, None) if row is None else read(ref, row, row + 1)


def parameter_recipes(model: Any, checkpoint: Checkpoint, read: Read) -> dict[str, Recipe]:
    """Parameter or buffer name to how it is made; tensors that the model does not have are left out."""
    known = model.state_dict()
    sources = assign(model, checkpoint)
    recipes: dict[str, Recipe] = {}
    for name, ref in sources.plain.items():
        recipes[name] = Recipe(ref, read, lambda _, ref=ref: read(ref, 0, None))  # type: ignore[misc]
    for group in sources.groups:
        recipes.update(_converted(_Conversion(group, read), model, known))
    return recipes


def _converted(conversion: _Conversion, model: Any, known: Any) -> dict[str, Recipe]:
    """A recipe for each target of a converter."""
    targets = conversion.group.targets
    per_expert = conversion.per_expert and all(len(known[t].shape) == 3 for t in targets if t in known)

    def maker(target: str) -> Callable[[int | None], torch.Tensor]:
        return lambda expert: conversion.run(model, expert)[target]

    return {target: Recipe(None, conversion.read, maker(target), per_expert) for target in targets if target in known}
