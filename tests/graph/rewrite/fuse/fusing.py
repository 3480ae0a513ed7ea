"""Port a function or module, compare it with torch at two sizes, and say what was fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import torch
from torch.utils import _pytree as pytree

from mlxport.graph.build import build
from mlxport.graph.capture.export import capture
from mlxport.graph.write.port_weights import from_torch, to_mlx
from mlxport.port.in_memory import _instance


class Function(torch.nn.Module):
    """A function of tensors, and of the module's parameters where it takes ``self``."""

    def __init__(self, function: Callable[..., Any], **parameters: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in parameters.items():
            setattr(self, name, torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor)

    def forward(self, *args):
        return self.function(self, *args) if list(self.parameters()) else self.function(*args)


@dataclass
class Fused:
    """The source of the model's classes, fusions that were applied, and reasons of those that were not."""

    source: str
    applied: list[str]
    declined: list[str]


def fused(
    module: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    other: tuple[torch.Tensor, ...] | None = None,
    *,
    limit: float = 1e-4,
    dynamic: Any = True,
) -> Fused:
    """Port ``module`` and hold it to torch's results on both inputs."""
    module = module.eval()
    result = build(capture(module, example, {}, dynamic=dynamic))
    port = _instance(result)
    for inputs in (example, other):
        if inputs is None:
            continue
        with torch.no_grad():
            wanted = [leaf for leaf in pytree.tree_leaves(module(*inputs)) if isinstance(leaf, torch.Tensor)]
        got = [leaf for leaf in pytree.tree_leaves(port(*to_mlx(inputs))) if isinstance(leaf, mx.array)]
        assert len(got) == len(wanted)
        for ours, theirs in zip(got, wanted, strict=True):
            reference = from_torch(theirs)
            assert ours.shape == reference.shape and ours.dtype == reference.dtype
            difference = mx.abs(ours.astype(mx.float32) - reference.astype(mx.float32))
            scale = max(float(mx.abs(reference.astype(mx.float32)).max()), 1e-6)
            assert float(difference.max()) <= limit * scale
    source = result.source
    source = source[source.index("    def from_dict") : source.index("def load(")]
    applied = [fusion.name for fusion in result.fusions if not fusion.declined]
    return Fused(source, applied, [fusion.declined for fusion in result.fusions if fusion.declined])


def of(function: Callable[..., Any], *shapes: tuple[int, ...], second: Any = None, **options: Any) -> Fused:
    """``fused`` of a function on random inputs of the given shapes; ``second``: shapes to try as well."""
    torch.manual_seed(0)
    inputs = tuple(torch.randn(shape) for shape in shapes)
    other = None if second is None else tuple(torch.randn(shape) for shape in second)
    if other is not None:  # what differs is dynamic
        auto = torch.export.Dim.AUTO
        pairs = zip(shapes, second, strict=True)
        axes = tuple({i: auto for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b} for pair in pairs)
        options.setdefault("dynamic", {"args": axes})
    return fused(Function(function), inputs, other, **options)


def together(functions: list[Callable[..., Any]], *shapes: tuple[int, ...], **options: Any) -> Fused:
    """``of`` several functions of the same inputs, in one program: capturing is what takes time."""
    return of(lambda *inputs: [function(*inputs) for function in functions], *shapes, **options)
