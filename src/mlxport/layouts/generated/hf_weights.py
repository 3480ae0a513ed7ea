"""From checkpoint tensors to the parameters of a transformers model, by transformers' own rules.

Everything that leans on its loading internals (``conversion_mapping``, ``core_model_loading``) stands in this file and
in ``parity/mapping.py``, which runs the same groups in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from mlxport.graph.lower.one_function import MissingOps, compile_source, flat_source
from mlxport.layouts.generated.open_clip_names import is_of_open_clip, open_clip_mapping
from mlxport.layouts.name_changes import NameChange, first_that_fits
from mlxport.types import Checkpoint, TensorRef

__all__ = ["ConverterGroup", "Sources", "absent", "assign", "saved_tensors", "weight_maps"]

# From the arrays of a checkpoint (by their names there) to one array of the module.
Map = Callable[[Mapping[str, mx.array]], mx.array]


@dataclass
class ConverterGroup:
    """One converter with the checkpoint tensors that it collects.

    Attributes:
        converter: transformers' ``WeightConverter``; it holds state: copy it before it is run.
        first: The first of the parameters that it makes.
        sources: Source pattern to tensors, in transformers' order.
    """

    converter: Any
    first: str
    sources: dict[str, list[TensorRef]] = field(default_factory=dict)

    @property
    def targets(self) -> list[str]:
        """The parameters that it makes: their names follow from the first's, as ``convert`` makes them."""
        patterns = self.converter.target_patterns
        prefix, _, suffix = self.first.partition(patterns[0])
        return [self.first] if len(patterns) == 1 else [prefix + pattern + suffix for pattern in patterns]


@dataclass
class Sources:
    """Where the parameters of a model come from.

    Attributes:
        plain: Parameters and buffers that are tensors of the checkpoint, unchanged.
        groups: What makes the others.
        change: What was done to the checkpoint's names first, None for nothing.
        left: Tensors of the checkpoint that the model does not have.
    """

    plain: dict[str, TensorRef] = field(default_factory=dict)
    groups: list[ConverterGroup] = field(default_factory=list)
    change: NameChange | None = None
    left: list[str] = field(default_factory=list)

    def found(self) -> set[str]:
        """The parameters and buffers that have a source."""
        return {*self.plain, *(name for group in self.groups for name in group.targets)}


def _renamed(key: str, model: Any, renamings: Any, converters: Any, known: Any) -> tuple[str, str | None]:
    name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, known)
    if name not in known and key in known:
        name, pattern = rename_source_key(key, [], [], model.base_model_prefix, known)
    return name, pattern


def assign(model: Any, checkpoint: Checkpoint) -> Sources:
    """Where each parameter and buffer of ``model`` comes from; tensors that it does not have are left out.

    Where the checkpoint's names are not those of the model, because a wrapper has changed all of them, they are read
    as the model's. A model of several libraries says it itself, by a method ``weight_sources``.
    """
    if (own := getattr(model, "weight_sources", None)) is not None:
        found: Sources = own(checkpoint)
        return found
    known = model.state_dict()
    tried: dict[NameChange, Sources] = {}

    def fits(change: NameChange) -> bool:
        tried[change] = _assigned(model, checkpoint, change, known)
        return not absent(model, tried[change].found())

    change = first_that_fits(checkpoint.tensors, lambda: known, fits)
    return tried[NameChange()] if change is None else replace(tried[change], change=change)


def absent(model: Any, found: Collection[str]) -> list[str]:
    """The parameters of ``model`` that are not among those found, under any of their names where several share one."""
    named = list(model.named_parameters(remove_duplicate=False))
    made = {id(parameter) for name, parameter in named if name in found}
    return [name for name, parameter in named if id(parameter) not in made]


def _assigned(model: Any, checkpoint: Checkpoint, change: NameChange, known: Mapping[str, Any]) -> Sources:
    mapping = get_model_conversion_mapping(model)
    if getattr(model.config, "model_type", "") == "clip" and is_of_open_clip(checkpoint.tensors):
        mapping = [*mapping, *open_clip_mapping()]
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    owner = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    tensors = {change(name): ref for name, ref in checkpoint.tensors.items()}
    sources = Sources()
    groups: dict[str, ConverterGroup] = {}
    for key in sorted(tensors, key=dot_natural_key):
        ref = tensors[key]
        name, pattern = _renamed(key, model, renamings, converters, known)
        if name not in known:
            sources.left.append(ref.name)
        elif pattern is None:
            sources.plain[name] = ref
        else:
            groups.setdefault(name, ConverterGroup(owner[pattern], name)).sources.setdefault(pattern, []).append(ref)
    sources.groups.extend(groups.values())
    return sources


def weight_maps(model: Any, sources: Sources) -> dict[str, Map]:
    """For each parameter and buffer of ``model`` that has a source: how it is made of the checkpoint's arrays.

    transformers' converters are torch code: each is traced once on fake tensors and lowered to MLX like a model.
    """
    maps: dict[str, Map] = {name: _plain(ref.name) for name, ref in sources.plain.items()}
    traced: dict[Any, tuple[list[str], Callable[..., Any]]] = {}
    for group in sources.groups:
        refs = [ref for refs in group.sources.values() for ref in refs]
        key = (id(group.converter), tuple((ref.shape, ref.dtype) for ref in refs), len(group.targets))
        if key not in traced or len(group.targets) != len(traced[key][0]):
            traced[key] = _traced(group, model)
        names, function = traced[key]
        targets = group.targets if len(group.targets) == len(names) else names
        for index, name in enumerate(targets):
            maps[name] = _converted(function, [ref.name for ref in refs], index)
    return maps


def _plain(name: str) -> Map:
    return lambda arrays: arrays[name]


def _converted(function: Callable[..., Any], names: Sequence[str], index: int) -> Map:
    return lambda arrays: function(*(arrays[name] for name in names))[index]


def _traced(group: ConverterGroup, model: Any) -> tuple[list[str], Callable[..., Any]]:
    """The names of what the converter makes, in the order of ``group.targets``, and the conversion on MLX arrays."""
    found: list[str] = []

    def convert(*tensors: torch.Tensor) -> list[torch.Tensor]:
        converter, remaining = deepcopy(group.converter), iter(tensors)
        for pattern, refs in group.sources.items():
            for ref, tensor in zip(refs, remaining, strict=False):
                converter.add_tensor(group.first, ref.name, pattern, lambda tensor=tensor: tensor)  # type: ignore[misc]
        made = converter.convert(group.first, model=model, config=model.config)
        found[:] = sorted(made, key=lambda name: group.targets.index(name) if name in group.targets else -1)
        return [made[name][0] if isinstance(made[name], list) else made[name] for name in found]

    refs = [ref for refs in group.sources.values() for ref in refs]
    examples = [torch.empty(ref.shape, dtype=torch.float32, device="meta") for ref in refs]
    graph = make_fx(convert, tracing_mode="fake")(*examples).graph
    graph.eliminate_dead_code()
    try:
        return list(found), compile_source(flat_source(graph))
    except MissingOps as error:
        raise AssertionError(f"transformers converts {group.first} by ops without a lowering: {error}") from error


def saved_tensors(model: Any) -> tuple[dict[str, torch.Tensor], frozenset[str]]:
    """What ``save_pretrained`` writes of a model, by name, and which of these are parameters; values may be missing.

    Of parameters that share one tensor only the first is there.
    """
    first: dict[int, str] = {}
    shared = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            shared.add(name)
    buffers = {name for name, _ in model.named_buffers()}
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in shared}
    parts = [{name: item for name, item in state.items() if (name in buffers) is held} for held in (False, True)]
    parameters, held = (revert_weight_conversion(model, part) for part in parts)
    return {**parameters, **held}, frozenset(parameters)
