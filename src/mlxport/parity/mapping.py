"""From checkpoint tensors to the parameters of a transformers model, by transformers' own rules.

Everything that leans on its loading internals (``conversion_mapping``, ``core_model_loading``) stands in this file.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

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


@dataclass
class _Group:
    """One converter with the checkpoint tensors that it collects, by source pattern."""

    converter: Any
    first: str
    read: Read
    sources: dict[str, list[TensorRef]] = field(default_factory=dict)

    def run(self, model: Any, expert: int | None) -> dict[str, torch.Tensor]:
        """Target name to tensor, of one expert only where asked for."""
        converter = deepcopy(self.converter)
        for pattern, refs in self.sources.items():
            if expert is None:
                chosen = [_later(self.read, ref, None) for ref in refs]
            elif len(refs) > 1:
                chosen = [_later(self.read, refs[expert], None)]
            else:
                chosen = [_later(self.read, refs[0], expert)]
            for ref, read in zip(refs, chosen, strict=False):
                converter.add_tensor(self.first, ref.name, pattern, read)
        result = converter.convert(self.first, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in result.items()}

    @property
    def per_expert(self) -> bool:
        """Whether experts are independent: each has its own tensors, or a row of one, and no step mixes them."""
        operations, counts = self.converter.operations, {len(refs) for refs in self.sources.values()}
        merged = isinstance(operations[0], MergeModulelist) and operations[0].dim == 0
        if merged != (max(counts) > 1) or len(counts) != 1:
            return False
        rest = operations[1:] if merged else operations
        if not merged and any(len(refs[0].shape) != 3 for refs in self.sources.values()):
            return False
        return all(_keeps_axis_0(operation) for operation in rest)


def _keeps_axis_0(operation: Any) -> bool:
    if isinstance(operation, Transpose):
        return 0 not in (operation.dim0, operation.dim1)
    return getattr(operation, "dim", 0) != 0


def _later(read: Read, ref: TensorRef, row: int | None) -> Callable[[], torch.Tensor]:
    """What ``materialize_tensors`` calls: the tensor itself, or one row of it with its axis."""
    return lambda: read(ref, 0, None) if row is None else read(ref, row, row + 1)


def _renamed(key: str, model: Any, renamings: Any, converters: Any, known: Any) -> tuple[str, str | None]:
    name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, known)
    if name not in known and key in known:
        name, pattern = rename_source_key(key, [], [], model.base_model_prefix, known)
    return name, pattern


def parameter_recipes(model: Any, checkpoint: Checkpoint, read: Read) -> dict[str, Recipe]:
    """Parameter or buffer name to how it is made; tensors that the model does not have are left out."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    owner = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    known = model.state_dict()
    recipes: dict[str, Recipe] = {}
    groups: dict[str, _Group] = {}
    for key in sorted(checkpoint.tensors, key=dot_natural_key):
        ref = checkpoint.tensors[key]
        name, pattern = _renamed(key, model, renamings, converters, known)
        if name not in known:
            continue
        if pattern is None:
            recipes[name] = Recipe(ref, read, lambda _, ref=ref: read(ref, 0, None))  # type: ignore[misc]
        else:
            group = groups.setdefault(name, _Group(owner[pattern], name, read))
            group.sources.setdefault(pattern, []).append(ref)
    for group in groups.values():
        recipes.update(_converted(group, model, known))
    return recipes


def _converted(group: _Group, model: Any, known: Any) -> dict[str, Recipe]:
    """A recipe for each target of a converter: their names follow from the first's, as ``convert`` makes them."""
    patterns = group.converter.target_patterns
    prefix, _, suffix = group.first.partition(patterns[0])
    targets = [group.first] if len(patterns) == 1 else [prefix + pattern + suffix for pattern in patterns]
    per_expert = group.per_expert and all(len(known[t].shape) == 3 for t in targets if t in known)

    def maker(target: str) -> Callable[[int | None], torch.Tensor]:
        return lambda expert: group.run(model, expert)[target]

    return {target: Recipe(None, group.read, maker(target), per_expert) for target in targets if target in known}
