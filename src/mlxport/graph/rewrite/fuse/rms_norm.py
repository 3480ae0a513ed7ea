"""RMSNorm written out: ``x * rsqrt(mean(x²) + eps) * weight`` -> ``aten.rms_norm``, so ``mx.fast.rms_norm``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.traits import traits_of
from mlxport.graph.rewrite.fuse.fusion import Fusion
from mlxport.graph.rewrite.fuse.norms import Norm, NormResult, find_norm, inside, leaks
from mlxport.graph.rewrite.fuse.values import CannotEvaluate, Values, close
from mlxport.graph.rewrite.graph_queries import Editor, ndim, peel, shape, where

__all__ = ["apply", "rewrite"]

_DIFFERENT = {
    False: "it computes something else than x / sqrt(mean(x²) + eps) * weight",
    True: "it computes something else than (x - mean) / sqrt(variance + eps) * weight + bias",
}


def apply(captured: Captured, values: Values) -> Iterable[Fusion]:
    """Fuse every RMSNorm that is written out."""
    return rewrite(captured, values, centred=False)


def rewrite(captured: Captured, values: Values, *, centred: bool) -> Iterator[Fusion]:
    """Fuse the norms that take off the mean, or those that do not."""
    name = "layer_norm" if centred else "rms_norm"
    seen: dict[Any, Any] = {}
    for node in list(captured.graph.nodes):
        if node.op != "call_function" or not node.users:
            continue
        norm = find_norm(node, values)
        if norm is None or norm.centred is not centred:
            continue
        place = where(norm.outputs[-1].node)
        declined = _axes_reason(norm) or "it is used in part by something else"
        for output in reversed(norm.outputs):
            if _axes_reason(norm):
                break
            region = inside(output.node, norm.x)
            if leaks(region, output.node) is not None:
                continue
            key = _signature(output, norm, region)
            if key not in seen:
                seen[key] = _matching(norm, output, values)
            if seen[key] is None:
                declined = _DIFFERENT[centred]
                continue
            _write(captured, norm, output, seen[key])
            declined = ""
            break
        yield Fusion(name, place, declined)


def _axes_reason(norm: Norm) -> str:
    rank = ndim(norm.x)
    if norm.axes == list(range(norm.axes[0], rank)):
        sizes = shape(norm.x)[norm.axes[0] :]
        return "" if all(isinstance(size, int) for size in sizes) else "the normalised size is dynamic"
    if len(norm.axes) == 1 and norm.centred and isinstance(shape(norm.x)[norm.axes[0]], int):
        return ""
    return f"axes {norm.axes} of {rank} are normalised, not the last ones"


def _signature(output: NormResult, norm: Norm, region: set[Node]) -> Any:
    """The same for norms that are spelled alike."""
    numbers: dict[Any, int] = {norm.x: 0, output.weight: 1, output.bias: 2}
    parts: list[Any] = [str(shape(norm.x)), str(norm.axes), str(norm.eps)]
    for node in sorted(region):
        numbers[node] = len(numbers) + 3
        parts.append(
            (str(node.target), str(torch.fx.node.map_arg(node.args, lambda n: numbers.get(n, n))), str(node.kwargs))
        )
    return tuple(map(str, parts))


def _matching(norm: Norm, output: NormResult, values: Values) -> float | None:
    """The (positive) eps with which the graph computes the norm, None if it computes something else."""
    parameters = [item for item in (output.weight, output.bias) if item is not None]
    for eps in dict.fromkeys(norm.eps):
        try:
            sizes = next(iter(values.sizes()))
            # Small numbers show where eps is added, a shift what is done to the mean.
            if all(
                _agrees(norm, output, values, eps, sizes, parameters, scale) for scale in (1.0, max(eps, 1e-12) ** 0.5)
            ):
                return eps
        except CannotEvaluate:
            return None
    return None


def _agrees(
    norm: Norm, output: NormResult, values: Values, eps: float, sizes: Any, parameters: list[Node], scale: float
) -> bool:
    x = (values.random(norm.x, sizes) + 0.5) * scale
    given = {norm.x: x} | {item: values.random(item, sizes, seed + 1) for seed, item in enumerate(parameters)}
    (got,) = values.run([output.node], given, sizes)
    last = norm.axes[-1] == x.ndim - 1
    moved = x if last else x.movedim(norm.axes[0], -1)
    dims = moved.shape[norm.axes[0] :] if last else moved.shape[-1:]
    weight, bias = (None if item is None else given[item].reshape(dims) for item in (output.weight, output.bias))
    if norm.centred:
        wanted = torch.nn.functional.layer_norm(moved, dims, weight, bias, eps)
    else:
        wanted = torch.nn.functional.rms_norm(moved, dims, weight, eps)
    return close(got, wanted if last else wanted.movedim(-1, norm.axes[0]))


def _write(captured: Captured, norm: Norm, output: NormResult, eps: float) -> None:
    edit = Editor(captured, output.node)
    x = norm.x
    dtype = output.node.meta["val"].dtype
    if x.meta["val"].dtype != dtype:
        x = next((node for node in x.users if peel(node) is x and node.meta["val"].dtype == dtype), None) or edit.cast(
            x, dtype
        )
    rank = ndim(x)
    order = list(range(rank))
    if norm.axes[-1] != rank - 1:
        order.append(order.pop(norm.axes[0]))
        x = edit.permute(x, order)
    dims = [int(size) for size in shape(x)[rank - len(norm.axes) :]]
    weight, bias = (None if item is None else _vector(edit, item, dims) for item in (output.weight, output.bias))
    kept = dtype  # a folded ``1 + weight`` is float32 in a model of halves
    for item in (weight, bias):
        kept = kept if item is None else torch.promote_types(kept, item.meta["val"].dtype)
    val = x.meta["val"].to(kept)
    if norm.centred:
        made = edit.call(torch.ops.aten.layer_norm.default, x, dims, weight, bias, eps, val=val)
    else:
        made = edit.call(torch.ops.aten.rms_norm.default, x, dims, weight, eps, val=val)
    made = edit.cast(made, dtype)
    if order != sorted(order):
        made = edit.permute(made, [order.index(axis) for axis in range(rank)])
    edit.replace(made)


def _vector(edit: Editor, node: Node, dims: list[int]) -> Node:
    """A weight in the shape of the normalised axes: what it was before it was made to broadcast."""
    source: Any = node
    while traits_of(source).shaped:
        source = source.args[0]
        if list(shape(source)) == dims and source.meta["val"].dtype == node.meta["val"].dtype:
            return source
    return edit.view(node, dims)
