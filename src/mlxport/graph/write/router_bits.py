"""``quant_predicate``: routers of experts take 8 bits whatever the rest takes, as in mlx-lm's own models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower import expert_ops
from mlxport.graph.lower.fused_ops import gather_mm
from mlxport.graph.lower.layer_specs import LayerSpec, layer
from mlxport.graph.lower.traits import traits_of

__all__ = ["router_bits"]

_BITS, _GROUPS = 8, (64, 32)
# Between a router's product and the choice, beside pointwise ops, views and reductions.
_PASSED = frozenset("softmax _softmax topk sort gather scatter scatter_add getitem chosen largest".split())


def router_bits(captured: Captured) -> list[str]:
    """Lines of the method; none where no quantizable layer chooses experts."""
    layers = {node.meta["layer"].path: node.meta["layer"] for node in captured.graph.nodes if node.target is layer}
    routers = {spec.path: spec for choice in _choices(captured) for spec in _routers(choice)}
    if not routers:
        return []
    gates = {path: spec for path, spec in layers.items() if spec.args.get("output_dims") == 1 and _is_linear(spec)}
    found = routers | gates  # how much of a shared expert is taken
    sizes = {spec.args["input_dims"] for spec in found.values()}
    group = next((group for group in _GROUPS if not any(size % group for size in sizes)), None)
    names = tuple(sorted({_within_layer(path) for path in found}))
    if any(path.endswith(names) for path in layers if path not in found):
        names = tuple(sorted(found))
    given = f'"{names[0]}"' if len(names) == 1 else "(" + ", ".join(f'"{name}"' for name in names) + ")"
    settings = "False" if group is None else f'{{"group_size": {group}, "bits": {_BITS}}}'
    return [
        *("@property", "def quant_predicate(self):", "    def predicate(path, module):"),
        *(f"        if path.endswith({given}):", f"            return {settings}", "        return True", ""),
        *("    return predicate", ""),
    ]


def _choices(captured: Captured) -> Iterator[Node]:
    """Experts of each token."""
    for node in captured.graph.nodes:
        if node.target is expert_ops.rows_by_expert:
            yield node.args[1]
        elif node.target is gather_mm and isinstance(node.args[2], Node):
            yield node.args[2]


def _routers(choice: Node) -> Iterator[LayerSpec]:
    """The linear layers that scores are of, without those that come before them."""
    pending, seen = [choice], {choice}
    while pending:
        node = pending.pop()
        if node.target is layer:
            if _is_linear(node.meta["layer"]):
                yield node.meta["layer"]
            continue
        if node.op != "call_function" or not _is_passed(node):
            continue
        for item in node.all_input_nodes:
            if item not in seen:
                seen.add(item)
                pending.append(item)


def _is_passed(node: Node) -> bool:
    traits = traits_of(node)
    known: Any = traits.pointwise or traits.cast or traits.view is not None or traits.reduction
    return bool(known) or traits.name in _PASSED


def _is_linear(spec: LayerSpec) -> bool:
    return spec.constructor == "nn.Linear"


def _within_layer(path: str) -> str:
    """``mlp.gate`` of ``model.layers.3.mlp.gate``."""
    parts = path.split(".")
    last = max((index for index, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[last + 1 :])
