"""Keys and values that are linear maps of latents -> ``latent_attention``: multi-head latent attention (DeepSeek's).

A cache then holds the latents of each token, and a part of keys that all heads share. The query of one new token is
mapped to the latents' space, and what it sees is mapped back: nothing is computed for the tokens before it. Many tokens
see keys and values. The weight of both maps is cut in two, a matrix for each head, under the names of mlx-lm's models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower import cache_ops
from mlxport.graph.lower.layer_specs import LayerSpec, Weight, layer_itself
from mlxport.graph.rewrite.caches.cached_step import CachedStep
from mlxport.graph.rewrite.fuse.values import CannotEvaluate
from mlxport.graph.rewrite.graph_queries import Editor, kind, ndim, same_size, shape, used_once

__all__ = ["Latents", "attend_to_latents", "find_latents"]

_aten = torch.ops.aten
_NAMES = ("embed_q", "unembed_out")  # as in mlx-lm's models
_Bounds = tuple[int, int]


@dataclass(frozen=True)
class Latents:
    """What keys and values are made of.

    Attributes:
        latents: [batch, 1, total, rank].
        shared: The part [batch, 1, total, width] of keys that all heads have.
        shared_first: Whether it comes before that which is made of the latents.
        weight: Placeholder of the map [heads * rows, rank], of which each head has rows for keys and for values.
        heads: How many.
        keys: First of the rows of a head that give its keys, and the one after the last.
        values: The same of its values.
    """

    latents: Node
    shared: Node
    shared_first: bool
    weight: Node
    heads: int
    keys: _Bounds
    values: _Bounds


def find_latents(step: CachedStep, query: Node, key: Node, value: Node) -> Latents | None:
    """What ``key`` and ``value`` [batch, heads, total, width] are made of; None where they are not such maps."""
    parts = _joined(key)
    shared = [_of_all_heads(part) for part in parts]
    if len(parts) != 2 or shared.count(None) != 1 or ndim(query) != 4:
        return None
    first = shared[0] is not None
    own, common = parts[first], shared[not first]
    linear, heads = _linear(own), shape(own)[1]
    if linear is None or not isinstance(heads, int) or _linear(value) is not linear:
        return None
    latents, weight, *bias = linear.args
    if any(item is not None for item in bias) or not _is_free(step.captured, weight):
        return None
    if ndim(latents) != 4 or not same_size(shape(latents)[1], 1):
        return None
    keys, values = (_rows_of_each_head(step, part, linear, heads) for part in (own, value))
    if common is None or keys is None or values is None:
        return None
    return Latents(latents, common, first, weight, heads, keys, values)


def attend_to_latents(
    step: CachedStep, edit: Editor, found: Latents, query: Node, given: Sequence[Any], val: torch.Tensor
) -> Node:
    """The attention of ``query`` to what was found; ``given`` are the cache, the mask, the scale, and sinks if any."""
    own, common = _parts_of_query(edit, found, query)
    dtype = found.weight.meta["val"].dtype
    maps = [_map(step, edit, spec, dtype) for spec in _specs(step.captured, found)]
    return edit.call(cache_ops.latent_attention, own, common, found.latents, found.shared, *maps, *given, val=val)


def _joined(node: Node) -> list[Node]:
    """What ``node`` joins along its last axis."""
    if kind(node) != "cat":
        return []
    parts: Any = node.args[0]
    axis: Any = node.args[1] if len(node.args) > 1 else 0
    return list(parts) if axis % ndim(node) == ndim(node) - 1 else []


def _of_all_heads(node: Node) -> Node | None:
    """What ``node`` is for each head alike."""
    source: Any = node.args[0] if kind(node) == "expand" else None
    if ndim(source) != 4 or ndim(node) != 4 or not same_size(shape(source)[1], 1):
        return None
    return source if all(same_size(shape(node)[axis], shape(source)[axis]) for axis in (0, 2, 3)) else None


def _linear(node: Any) -> Any:
    """The linear map from whose result alone ``node`` is taken; None without one."""
    while kind(node) != "linear":
        before = [item for item in node.all_input_nodes if not isinstance(item.meta.get("val"), torch.SymInt)]
        if len(before) != 1:
            return None
        (node,) = before
    return node


def _is_free(captured: Captured, weight: Any) -> bool:
    """Whether a weight has no other use, no other name, and the names of its parts are not taken."""
    name = captured.weights.get(weight, "")
    paths = [_path(name, part) for part in _NAMES]
    taken = {*captured.modules, *captured.state}
    return used_once(captured, weight) and ndim(weight) == 2 and taken.isdisjoint(paths)


def _path(name: str, part: str) -> str:
    """Where a part of the weight called ``name`` lies: beside the module that has it."""
    owner = name.rpartition(".")[0].rpartition(".")[0]
    return f"{owner}.{part}" if owner else part


def _rows_of_each_head(step: CachedStep, part: Node, linear: Node, heads: int) -> _Bounds | None:
    """Which numbers of each head in a linear map's result ``part`` has, if they follow one another."""
    sizes = next(iter(step.values.sizes()))
    batch, _, total, rows = (step.values.number(size, sizes) for size in shape(linear))
    if rows % heads:
        return None
    numbers = torch.arange(batch * total * rows, dtype=torch.float64).reshape(batch, 1, total, rows)
    try:
        (got,) = step.values.run([part], {linear: numbers}, sizes)
    except CannotEvaluate:
        return None
    by_head = numbers.reshape(batch, total, heads, -1).transpose(1, 2)
    start = int(got.flatten()[0])
    end = start + int(got.shape[-1])
    return (start, end) if torch.equal(got, by_head[..., start:end]) else None


def _parts_of_query(edit: Editor, found: Latents, query: Node) -> tuple[Node, Node]:
    """The part of queries that meets what is made of latents, and that which meets what all heads share."""
    widths = [found.keys[1] - found.keys[0], shape(found.shared)[-1]]
    if found.shared_first:
        widths.reverse()
    parts = _joined(query)
    if [shape(part)[-1] for part in parts] != widths:
        cut = widths[0]
        parts = [edit.call(_aten.slice.Tensor, query, -1, *ends) for ends in ((0, cut), (cut, sum(widths)))]
    return (parts[1], parts[0]) if found.shared_first else (parts[0], parts[1])


def _specs(captured: Captured, found: Latents) -> list[LayerSpec]:
    """The two maps as mlx-lm's layers: from queries to latents, and from latents to values."""
    name, rank = captured.weights[found.weight], shape(found.weight)[1]
    sizes = [(found.keys[1] - found.keys[0], rank), (rank, found.values[1] - found.values[0])]
    specs = []
    for part, bounds, (inputs, outputs) in zip(_NAMES, (found.keys, found.values), sizes, strict=True):
        made = Weight((name,), "heads", (found.heads, *bounds, int(part == _NAMES[0])))
        args = {"input_dims": inputs, "output_dims": outputs, "num_heads": found.heads}
        specs.append(LayerSpec(_path(name, part), "MultiLinear", args, 3, {"weight": made}))
    return specs


def _map(step: CachedStep, edit: Editor, spec: LayerSpec, dtype: torch.dtype) -> Node:
    """The layer as an argument, with the sizes of its weight."""
    sizes = tuple(spec.args[name] for name in ("num_heads", "output_dims", "input_dims"))
    node = edit.call(layer_itself, val=step.fake(sizes, dtype))
    node.meta["layer"] = spec
    return node
