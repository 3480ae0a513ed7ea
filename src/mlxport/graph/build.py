"""The table of contents of the port engine: a captured program rewritten, lowered, and written as source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mlxport.graph.capture.assigned_names import tell_assigned_names
from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.table_limits import SizeLimit, ValueLimit, limit_sizes, value_limits
from mlxport.graph.lower.layer_specs import Fold, LayerSpec, Weight
from mlxport.graph.lower.subgraphs import function_sources
from mlxport.graph.rewrite.batchnorm import fold_batchnorm
from mlxport.graph.rewrite.caches.cached_step import CacheKind
from mlxport.graph.rewrite.caches.stacked_states import take_apart
from mlxport.graph.rewrite.caches.use_caches import use_caches
from mlxport.graph.rewrite.channels_last.sinking import channels_last
from mlxport.graph.rewrite.choices import choose_by_value
from mlxport.graph.rewrite.constants import inline_constants
from mlxport.graph.rewrite.folding import fold_constants
from mlxport.graph.rewrite.fuse import Fusion, fuse
from mlxport.graph.rewrite.members import name_members
from mlxport.graph.rewrite.noops import remove_noops
from mlxport.graph.rewrite.sharing import find_layers
from mlxport.graph.rewrite.strides import stride_over_owners
from mlxport.graph.write.classes import build_classes
from mlxport.graph.write.emit import file_source, format_source, layer_fields
from mlxport.graph.write.generating import generating
from mlxport.graph.write.input_sizes import sizes_told
from mlxport.graph.write.limits_told import lengths_told, limits_told
from mlxport.graph.write.lowered_graph import lower_graph
from mlxport.graph.write.module_bodies import build_bodies
from mlxport.graph.write.parameters import port_parameters, weight_shapes
from mlxport.graph.write.paths import Paths
from mlxport.graph.write.scope_parts import Context
from mlxport.graph.write.signature import call_signature

__all__ = ["Port", "build"]


@dataclass
class Port:
    """An emitted port.

    Attributes:
        captured: The program that it was made from, rewritten.
        source: Text of ``model.py``.
        weights: Parameter path of the port to how it is made from the module's tensors.
        folds: Constant expressions that the weights refer to.
        fields: ``ModelArgs`` with their values.
        class_name: Name of the root class.
        model_type: Value of ``ModelArgs.model_type``.
        ops: Op name to the number of nodes, of the graph as it was captured.
        fusions: What was fused, and what was not with the reason.
        notes: What a user should know (float64 that became float32, …).
        sizes: For each input its sizes: which are free, in which range, and what fixes the others.
        caches: What mlx-lm keeps for each layer, where the program is a step of generation; else empty.
    """

    captured: Captured
    source: str = ""
    weights: dict[str, Weight] = field(default_factory=dict)
    folds: dict[str, Fold] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    class_name: str = ""
    model_type: str = ""
    ops: dict[str, int] = field(default_factory=dict)
    fusions: list[Fusion] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    caches: list[CacheKind] = field(default_factory=list)


def build(
    captured: Captured,
    *,
    title: str = "",
    model_type: str = "",
    fusions: bool = True,
    batchnorm: bool = False,
    cache: Any = None,
    fields_at: Sequence[str] = (),
) -> Port:
    """Port a captured program.

    Args:
        captured: The program; its graph is rewritten.
        title: First line of the source's docstring.
        model_type: Value of ``ModelArgs.model_type``; default the class's name in lower case.
        fusions: Whether to fuse what MLX has in one.
        batchnorm: Whether to multiply BatchNorm into the convolution before it.
        cache: The example's cache, of transformers, where the program is a step of generation ``(input_ids, cache)``;
            its port takes mlx-lm's caches.
        fields_at: Keys that lead to its fields in config.json, where it is a part of a model and not alone there.

    Raises:
        MissingOps: with every op that has no lowering.
        NotCached: A step that cannot be written on mlx-lm's caches.
    """
    port = Port(captured, notes=[*captured.notes, *_halved(captured)])
    limits = limit_sizes(captured), value_limits(captured)
    layers = _rewrite(captured, port, fusions, batchnorm, cache)
    _write(captured, port, layers, limits, (title, model_type), fields_at)
    return port


def _rewrite(captured: Captured, port: Port, fusions: bool, batchnorm: bool, cache: Any) -> dict[str, LayerSpec]:
    """The graph made smaller and nearer to MLX; gives the layers that stand in it, by path."""
    tell_assigned_names(captured)
    inline_constants(captured)
    stride_over_owners(captured.graph)
    choose_by_value(captured.graph)
    remove_noops(captured.graph)
    port.ops = _op_counts(captured)
    if batchnorm:
        port.notes += fold_batchnorm(captured)
    port.folds = fold_constants(captured)
    captured.trainable |= {n for n, fold in port.folds.items() if captured.trainable.intersection(fold.sources)}
    if fusions:
        port.fusions = fuse(captured, port.folds)
        remove_noops(captured.graph)
    if cache is not None:
        take_apart(captured, cache)
        port.caches = use_caches(captured, port.folds, cache)
        remove_noops(captured.graph)
    layers = find_layers(captured)
    channels_last(captured.graph)
    name_members(captured, layers)
    return layers


def _write(
    captured: Captured,
    port: Port,
    layers: Mapping[str, LayerSpec],
    limits: tuple[list[SizeLimit], list[ValueLimit]],
    named: tuple[str, str],
    fields_at: Sequence[str],
) -> None:
    """The graph lowered to expressions, these put into bodies, and bodies into classes."""
    functions = function_sources(captured.graph)
    lowered = lower_graph(captured)
    context = Context(captured, lowered, Paths(dict(captured.modules)), {n.name: n for n in captured.weights})
    bodies, names = build_bodies(context, layers)
    classes, fields, by_path = build_classes(context, bodies, layers, weight_shapes(captured))
    root_class = by_path[""]
    port.weights = port_parameters(context, bodies, layers)
    port.class_name = root_class.name
    port.fields = {item.name: item.value for item in fields}
    name = type(captured.modules[""]).__name__
    title, model_type = named
    port.model_type = model_type or name.lower()
    made = generating(captured, port.caches) if port.caches else None
    call = call_signature(captured, names) if made is None else made.call
    known = {node: call.renamed.get(own, own) for node, own in names.items()}
    told = limits_told(*limits, known) if made is None else lengths_told(limits[0])
    port.notes += told
    if made is None:
        port.sizes = sizes_told(captured, known)
    heading = title or f"{name} in MLX."
    source = file_source(heading, classes, fields, root_class, call, port.model_type, told, made, fields_at, functions)
    port.source = format_source(source)
    port.fields |= {item.name: item.value for item in layer_fields(source, fields, made)}


def _halved(captured: Captured) -> list[str]:
    """A note on dtypes that MLX does not have."""
    values = [node.meta["val"] for node in captured.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    wide = {str(value.dtype) for value in values if value.dtype in (torch.float64, torch.complex128)}
    return [f"{', '.join(sorted(wide))} is computed in half the width: MLX's GPU has no float64"] if wide else []


def _op_counts(captured: Captured) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in captured.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            counts[str(node.target)] = counts.get(str(node.target), 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
