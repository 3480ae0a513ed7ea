"""The stages of the port composed: captured program to source, weights and report."""

from __future__ import annotations

import ast
import copy
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.program import Captured
from mlxport.graph.capture.stores import store
from mlxport.graph.lower import symbolic_sizes
from mlxport.graph.lower.expr import Expr, to_ast
from mlxport.graph.lower.layer_specs import Fold, LayerSpec, Weight
from mlxport.graph.lower.lowering import hint, is_read, lower_node, mx_dtype, symbolic
from mlxport.graph.lower.one_function import Gaps, is_assertion
from mlxport.graph.rewrite.batchnorm import fold_batchnorm
from mlxport.graph.rewrite.channels_last.sinking import channels_last
from mlxport.graph.rewrite.constants import inline_constants
from mlxport.graph.rewrite.folding import fold_constants
from mlxport.graph.rewrite.fuse import Fusion, fuse
from mlxport.graph.rewrite.members import name_members
from mlxport.graph.rewrite.noops import remove_noops
from mlxport.graph.rewrite.sharing import find_layers
from mlxport.graph.write.bodies import build_body
from mlxport.graph.write.classes import build_classes
from mlxport.graph.write.emit import file_source, format_source
from mlxport.graph.write.naming import argument_names
from mlxport.graph.write.paths import Paths
from mlxport.graph.write.scope_parts import Body, Context, Step
from mlxport.graph.write.signature import call_signature, input_names
from mlxport.graph.write.tree import build_tree, scopes

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


def build(
    captured: Captured, *, title: str = "", model_type: str = "", fusions: bool = True, batchnorm: bool = False
) -> Port:
    """Port a captured program.

    Args:
        captured: The program; its graph is rewritten.
        title: First line of the source's docstring.
        model_type: Value of ``ModelArgs.model_type``; default the class's name in lower case.
        fusions: Whether to fuse what MLX has in one.
        batchnorm: Whether to multiply BatchNorm into the convolution before it.

    Raises:
        MissingOps: with every op that has no lowering.
    """
    port = Port(captured)
    _notes(captured, port)
    inline_constants(captured)
    remove_noops(captured.graph)
    port.ops = _op_counts(captured)
    if batchnorm:
        port.notes += fold_batchnorm(captured)
    port.folds = fold_constants(captured)
    learned = {name for name, fold in port.folds.items() if captured.trainable.intersection(fold.sources)}
    captured.trainable |= learned
    if fusions:
        port.fusions = fuse(captured, port.folds)
        remove_noops(captured.graph)
    layers = find_layers(captured)
    channels_last(captured.graph)
    name_members(captured, layers)
    lowered = _lower(captured)
    context = Context(captured, lowered, Paths(dict(captured.modules)), {n.name: n for n in captured.weights})
    bodies, names = _bodies(context, layers)
    classes, fields, by_path = build_classes(context, bodies, layers, _shapes(captured))
    root_class = by_path[""]
    port.weights = _weights(context, bodies, layers)
    port.class_name = root_class.name
    port.fields = {item.name: item.value for item in fields}
    name = type(captured.modules[""]).__name__
    port.model_type = model_type or name.lower()
    source = file_source(
        title or f"{name} in MLX.", classes, fields, root_class, call_signature(captured, names), port.model_type
    )
    port.source = format_source(source)
    return port


def _notes(captured: Captured, port: Port) -> None:
    port.notes += captured.notes
    wide = {str(value.dtype) for value in _values(captured) if value.dtype in (torch.float64, torch.complex128)}
    if wide:
        port.notes.append(f"{', '.join(sorted(wide))} is computed in half the width: MLX's GPU has no float64")


def _values(captured: Captured) -> list[torch.Tensor]:
    return [node.meta["val"] for node in captured.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]


def _op_counts(captured: Captured) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in captured.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            counts[str(node.target)] = counts.get(str(node.target), 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _lower(captured: Captured) -> dict[Node, Any]:
    """The expression of every node that computes something; nodes that give another back are taken out of the graph."""
    graph = captured.graph
    by_name = {node.name: node for node in graph.nodes}
    lowered: dict[Node, Any] = {}
    gaps = Gaps()
    for node in list(graph.nodes):
        if node.op != "call_function" or is_assertion(node) or _is_size(node):
            continue
        if node.target is store:
            lowered[node] = symbolic(node.args[0])
            continue
        with gaps.at(node):
            result = _lowered(node, lowered)
            other = _alias(by_name, result)
            if other is not None and not gaps:
                node.replace_all_uses_with(other)
                graph.erase_node(node)
            else:
                lowered[node] = result
    gaps.check()
    for node in reversed(list(lowered)):  # what only served nodes that are gone
        if not node.users and node.target is not store:
            graph.erase_node(node)
            del lowered[node]
    return lowered


def _lowered(node: Node, lowered: Mapping[Node, Any]) -> Any:
    if node.target is operator.getitem and isinstance(lowered.get(node.args[0]), tuple):
        return lowered[node.args[0]][node.args[1]]
    return lower_node(node, symbolic)


def _is_size(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.SymInt | torch.SymBool | torch.SymFloat | int | bool) and not is_read(node)


def _alias(by_name: Mapping[str, Node], result: Any) -> Node | None:
    if isinstance(result, Expr) and isinstance(result.node, ast.Name) and result.node.id.startswith("%"):
        return by_name[result.node.id[1:]]
    return None


def _bodies(context: Context, layers: Mapping[str, LayerSpec]) -> tuple[list[Body], dict[Node, str]]:
    """One body for each module, inner ones first; a call that differs from its module's others is written in place."""
    captured = context.captured
    names = input_names(captured)
    remaining = [node for node in captured.graph.nodes if node in context.lowered]
    dissolved: set[str] = set()
    while True:
        root = build_tree(captured, remaining, dissolved)
        arguments = argument_names(captured, root, names)
        by_path: dict[str, list[Body]] = {}
        for scope in scopes(root):
            body = build_body(context, scope, arguments[scope.key])
            context.bodies[scope.key] = body
            by_path.setdefault(scope.path, []).append(body)
        odd = {body.scope.key for found in by_path.values() for body in _odd(found)}
        if not odd:
            break
        dissolved |= odd
    top = build_body(context, root, names, result=_result(captured))
    bodies = [*(found[0] for found in by_path.values()), top]
    _settle(bodies, [body for found in by_path.values() for body in found[1:]], layers)
    return bodies, names


def _odd(found: Sequence[Body]) -> list[Body]:
    """The bodies of one module that are not like most of them."""
    if len(found) < 2:
        return []
    forms = [_form(body) for body in found]
    usual = max(forms, key=forms.count)
    return [body for body, form in zip(found, forms, strict=True) if form != usual]


def _form(body: Body) -> str:
    steps = [Step(step.targets, step.value) for step in body.steps]
    trees = [*(step.value for step in steps), *([body.result] if body.result is not None else [])]
    texts = [ast.unparse(ast.fix_missing_locations(copy.deepcopy(tree))) for tree in trees]
    return "\n".join([repr(tuple(body.parameters)), *(repr(step.targets) for step in steps), *texts])


def _settle(bodies: Sequence[Body], others: Sequence[Body], layers: Mapping[str, LayerSpec]) -> None:
    """Let each weight, layer and module belong to the innermost module that has it, whoever uses it."""
    by_path = {body.scope.path: body for body in bodies}
    used = [full for body in [*bodies, *others] for full in body.used]
    for body in bodies:
        body.used = {}
    for full in used:
        owner = full.rpartition(".")[0]
        if owner in layers:
            full, owner = owner, owner.rpartition(".")[0]
        while owner not in by_path:
            owner = owner.rpartition(".")[0]
        by_path[owner].used.setdefault(full)


def _result(captured: Captured) -> ast.expr:
    output = next(node for node in captured.graph.nodes if node.op == "output")
    (flat,) = output.args
    leaves = list(flat)

    def leaf(item: Any) -> ast.expr:
        if isinstance(item, Node):
            value = item.meta.get("val")
            return symbolic_sizes.placeholder(value) if isinstance(value, torch.SymInt) else ast.Name("%" + item.name)
        return to_ast(item)

    trees = iter([leaf(item) for item in leaves])

    def build_tree_(spec: Any) -> ast.expr:
        if spec.is_leaf():
            return next(trees)
        children = [build_tree_(child) for child in spec.children()]
        context = spec.context
        if spec.type is list:
            return ast.List(children)
        keys = _keys(spec.type, context, len(children))
        if keys is not None:
            return ast.Dict([to_ast(key) for key in keys], children)
        if not children:
            return ast.Constant(None) if spec.type is type(None) else ast.Tuple([])
        return ast.Tuple(children)

    return build_tree_(captured.out_spec)


def _keys(kind: Any, context: Any, count: int) -> list[Any] | None:
    """Names of the parts of a dict, a ModelOutput or a dataclass; None for a tuple."""
    if kind is tuple or (isinstance(kind, type) and issubclass(kind, tuple)):
        return None
    for item in (context, context[0] if isinstance(context, list | tuple) and context else None):
        if isinstance(item, list | tuple) and len(item) == count and count:
            if all(isinstance(key, str | int) for key in item):
                return list(item)
    return None


def _shapes(captured: Captured) -> dict[str, ast.expr]:
    """How each weight that is no layer's is allocated."""
    shapes: dict[str, ast.expr] = {}
    for node, name in captured.weights.items():
        value = node.meta["val"]
        shape = tuple(hint(size) for size in value.shape)
        dtype = mx_dtype(value.dtype)
        arguments: list[Any] = [shape] if str(dtype) == "mlx.core.float32" else [shape, dtype]
        shapes[name] = ast.Call(ast.Attribute(ast.Name("mx"), "zeros"), [to_ast(item) for item in arguments], [])
    return shapes


def _weights(context: Context, bodies: Sequence[Body], layers: Mapping[str, LayerSpec]) -> dict[str, Weight]:
    """The port's parameters: path to how each is made."""
    found: dict[str, Weight] = {}
    names = set(context.captured.weights.values())
    for full in (full for body in bodies for full in body.used):
        path = context.paths.port(full)
        if full in layers:
            for key, weight in layers[full].weights.items():
                found[f"{path}.{key}"] = weight
        elif full in names:
            found[path] = Weight((full,))
    return found
