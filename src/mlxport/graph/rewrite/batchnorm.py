"""Eval-mode BatchNorm multiplied into the convolution before it, as constant expressions that ``folding`` evaluates."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.registry import bind

__all__ = ["fold_batchnorm"]

aten = torch.ops.aten
_CONVOLUTIONS = {aten.conv1d.default: 0, aten.conv2d.default: 0, aten.conv3d.default: 0,
                 aten.conv_transpose1d.default: 1, aten.conv_transpose2d.input: 1,
                 aten.conv_transpose3d.input: 1}  # fmt: skip


def fold_batchnorm(captured: Captured) -> list[str]:
    """Fold where it can be done; what was not folded, and why."""
    declined = []
    for node in list(captured.graph.nodes):
        norm = _norm(node)
        if norm is None:
            continue
        reason = _fold(captured, node, norm)
        if reason:
            name = captured.weights.get(norm["running_mean"], "").rpartition(".")[0]
            declined.append(f"BatchNorm {name} is not folded: {reason}")
    captured.graph.eliminate_dead_code()
    return declined


def _norm(node: Node) -> dict[str, Any] | None:
    """Arguments of a BatchNorm in eval mode."""
    if node.target is aten.batch_norm.default:
        bound = bind(node.target, node.args, dict(node.kwargs))
        return None if bound["training"] else bound
    if node.target is aten._native_batch_norm_legit_no_training.default:
        if any(user.args[1] != 0 for user in node.users):
            return None
        return bind(node.target, node.args, dict(node.kwargs))
    return None


def _fold(captured: Captured, node: Node, norm: dict[str, Any]) -> str:
    conv = norm["input"]
    if conv.target not in _CONVOLUTIONS:
        return "what comes before it is not a convolution"
    if len(conv.users) != 1:
        return "the convolution's output has another use"
    bound = bind(conv.target, conv.args, dict(conv.kwargs))
    weight, bias, axis = bound["weight"], bound["bias"], _CONVOLUTIONS[conv.target]
    parts = [weight, norm["running_mean"], norm["running_var"], *(x for x in (bias, norm["weight"], norm["bias"]) if x)]
    if any(part not in captured.weights for part in parts):
        return "its weights are computed"
    if len(weight.users) != 1 or (bias is not None and len(bias.users) != 1):
        return "the convolution's weights have another use"
    if axis == 1 and bound["groups"] != 1:
        return "the transposed convolution has groups"
    path = captured.weights[weight].rpartition(".")[0]
    prefix = f"{path}." if path else ""
    graph = captured.graph
    with graph.inserting_before(conv):
        scale = _call(graph, aten.rsqrt.default, _call(graph, aten.add.Scalar, norm["running_var"], norm["eps"]))
        if norm["weight"] is not None:
            scale = _call(graph, aten.mul.Tensor, scale, norm["weight"])
        shape = [1] * weight.meta["val"].ndim
        shape[axis] = -1
        new_weight = _call(graph, aten.mul.Tensor, weight, _call(graph, aten.view.default, scale, shape))
        shift: Node = norm["running_mean"]
        if bias is not None:
            shift = _call(graph, aten.sub.Tensor, shift, bias)
        new_bias = _call(graph, aten.neg.default, _call(graph, aten.mul.Tensor, shift, scale))
        if norm["bias"] is not None:
            new_bias = _call(graph, aten.add.Tensor, new_bias, norm["bias"])
    new_weight.meta["fold_name"], new_bias.meta["fold_name"] = f"{prefix}weight", f"{prefix}bias"
    bound["weight"], bound["bias"] = new_weight, new_bias
    conv.args, conv.kwargs = tuple(bound.values()), {}
    results = [node] if node.target is aten.batch_norm.default else list(node.users)
    for result in results:
        result.replace_all_uses_with(conv)
        graph.erase_node(result)
    if node not in results:
        graph.erase_node(node)
    return ""


def _call(graph: Graph, target: Any, *args: Any) -> Node:
    node = graph.call_function(target, args)
    values = [item.meta["val"] if isinstance(item, Node) else item for item in args]
    fake = next(value for value in values if isinstance(value, torch.Tensor))
    with fake.fake_mode:  # type: ignore[attr-defined]
        node.meta["val"] = target(*values)
    return node
