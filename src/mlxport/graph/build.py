"""The stages of the port composed: captured program to source, weights and report."""

from __future__ import annotations

import ast
import copy
import inspect
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from dataclasses import fields as dataclass_fields
from keyword import iskeyword
from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from mlxport.graph import sizes
from mlxport.graph.batchnorm import fold_batchnorm
from mlxport.graph.body import build_body
from mlxport.graph.capture import Captured
from mlxport.graph.classes import build_classes
from mlxport.graph.clean import remove_noops
from mlxport.graph.constants import inline_constants
from mlxport.graph.emit import file_source, format_source
from mlxport.graph.expr import Expr, to_ast
from mlxport.graph.flat import Gaps, is_assertion
from mlxport.graph.fold import Fold, fold_constants
from mlxport.graph.fuse import Fusion, fuse
from mlxport.graph.guards import relations, size_rules
from mlxport.graph.helpers import inputs as input_helpers
from mlxport.graph.layers import LayerSpec, Weight
from mlxport.graph.layout import channels_last
from mlxport.graph.lower import hint, is_read, lower_node, mx_dtype, symbolic
from mlxport.graph.members import name_members
from mlxport.graph.naming import argument_names
from mlxport.graph.paths import Paths
from mlxport.graph.registry import helper
from mlxport.graph.sharing import find_layers
from mlxport.graph.stores import store
from mlxport.graph.structures import Attribute
from mlxport.graph.tree import build_tree, scopes
from mlxport.graph.units import Body, Context, Step

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
        title or f"{name} in MLX.", classes, fields, root_class, _signature(captured, names), port.model_type
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
    names = _input_names(captured)
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
            return sizes.placeholder(value) if isinstance(value, torch.SymInt) else ast.Name("%" + item.name)
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


def _input_leaves(captured: Captured) -> list[tuple[str, tuple[Any, ...], Any]]:
    """For each leaf of the example inputs: the parameter, the path within its value, and the leaf (node or value)."""
    found = []
    placeholder = [Leaf(index) for index in range(len(captured.values))]
    args, kwargs = pytree.tree_unflatten(placeholder, captured.in_spec)
    bound = captured.signature.bind(*args, **kwargs)
    for name, value in bound.arguments.items():
        kind = captured.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            for key, inner in value.items():
                found += _leaves(captured, key, (), inner)
        else:
            found += _leaves(captured, name, (), value)
    return found


@dataclass(frozen=True)
class Leaf:
    """Stands for one leaf of the inputs."""

    index: int


def _leaves(captured: Captured, name: str, path: tuple[Any, ...], value: Any) -> list[tuple[str, tuple[Any, ...], Any]]:
    if isinstance(value, Leaf):
        node = captured.inputs[value.index] if value.index < len(captured.inputs) else None
        return [(name, path, node if node is not None else captured.values[value.index])]
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(captured, name, (*path, key), inner)]
    if isinstance(value, list | tuple):
        return [leaf for index, inner in enumerate(value) for leaf in _leaves(captured, name, (*path, index), inner)]
    if is_dataclass(value) and not isinstance(value, type):
        parts = {item.name: getattr(value, item.name) for item in dataclass_fields(value)}
        return [
            leaf for key, inner in parts.items() for leaf in _leaves(captured, name, (*path, Attribute(key)), inner)
        ]
    return [(name, path, value)]


def _input_names(captured: Captured) -> dict[Node, str]:
    names: dict[Node, str] = {}
    for name, path, leaf in _input_leaves(captured):
        if isinstance(leaf, Node):
            last = [str(part) for part in path if isinstance(part, str)]
            names[leaf] = last[-1] if last else "_".join([name, *map(str, path)])
            # A part may not hide the parameter that further parts are taken from.
            if list(names.values()).count(names[leaf]) > 1 or path and names[leaf] in captured.signature.parameters:
                names[leaf] = "_".join([name, *map(str, path)])
            names[leaf] = _identifier(names[leaf])
    return names


def _identifier(key: str) -> str:
    name = re.sub(r"\W", "_", key) or "x"
    return f"x_{name}" if name[0].isdigit() or iskeyword(name) else name


def _signature(captured: Captured, names: Mapping[Node, str]) -> tuple[str, list[str]]:
    """The root's ``__call__``: the original's parameters, checks of what was fixed, and the parts of nested inputs."""
    leaves = _input_leaves(captured)
    given: dict[str, list[tuple[tuple[Any, ...], Any]]] = {}
    for name, path, leaf in leaves:
        given.setdefault(name, []).append((path, leaf))
    order = [name for name in captured.signature.parameters if name in given]
    order += [name for name in given if name not in order]
    parts, optional = ["self"], False
    before: list[str] = []
    fixed: list[str] = []
    for name in order:
        parameter = captured.signature.parameters.get(name)
        items = given[name]
        kind = parameter.kind if parameter is not None else inspect.Parameter.KEYWORD_ONLY
        if kind is inspect.Parameter.VAR_POSITIONAL:
            parts.append(f"*{name}")
        elif len(items) == 1 and not items[0][0] and not isinstance(items[0][1], Node):
            parts.append(f"{name}={items[0][1]!r}")
            fixed.append(f"{name}=({name}, {items[0][1]!r})")
            optional = True
        else:
            parts.append(f"{name}=None" if optional else name)
        for path, leaf in items:
            access = name + "".join(f".{part}" if isinstance(part, Attribute) else f"[{part!r}]" for part in path)
            if path and isinstance(leaf, Node):
                before.append(f"{names[leaf]} = {access}")
            elif path and isinstance(leaf, bool | int | float | str | None):
                fixed.append(f"{_identifier('_'.join(map(str, (name, *path))))}=({access}, {leaf!r})")
    checks = _shape_check(captured, names)
    if fixed:
        checks.append(f"check_fixed({', '.join(fixed)})")
        helper(input_helpers.check_fixed)
    return ", ".join(parts), [*before, *checks]


def _shape_check(captured: Captured, names: Mapping[Node, str]) -> list[str]:
    wanted: dict[str, tuple[Any, ...]] = {}
    letters: dict[Any, str] = {}
    for node, name in names.items():
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            continue
        wanted[name] = tuple(
            size if isinstance(size, int) else _wanted(captured, letters, size.node.expr) for size in value.shape
        )
    if not wanted:
        return []
    helper(input_helpers.check_inputs)
    text = "{" + ", ".join(f"{name!r}: {shape!r}" for name, shape in wanted.items()) + "}"
    symbols = [expr for expr in letters if expr.is_Symbol]
    rules = size_rules(captured, symbols)
    limits = {letters[symbol]: rule.as_tuple() for symbol, rule in rules.items() if not rule.trivial}
    extra = f", {limits!r}" if limits else ""
    lines = [f"check_inputs({text}{extra}, {', '.join(f'{name}={name}' for name in wanted)})"]
    places: dict[Any, str] = {}
    for node, name in names.items():
        value = node.meta["val"]
        for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if isinstance(size, torch.SymInt):
                places.setdefault(size.node.expr, f"{name}.shape[{axis}]")
    for condition in relations(captured, symbols, rules, places):
        lines += [f"if not {condition}:", f'    raise ValueError("the sizes of the inputs must satisfy {condition}")']
    return lines


def _wanted(captured: Captured, letters: dict[Any, str], expr: Any) -> str | tuple[str, int, int]:
    """The name of a size, with a factor and an offset where it follows from one symbol."""
    symbols = list(expr.free_symbols)
    if len(symbols) == 1 and expr != symbols[0]:
        factor = expr.diff(symbols[0])
        offset = expr - factor * symbols[0]
        if factor.is_Integer and factor > 0 and offset.is_Integer:
            return _letter(captured, letters, symbols[0]), int(factor), int(offset)
    return _letter(captured, letters, expr)


def _letter(captured: Captured, letters: dict[Any, str], expr: Any) -> str:
    if expr not in letters:
        base = sizes.size_name(captured, expr)
        name, number = base, 1
        while name in letters.values():
            number += 1
            name = f"{base}{number}"
        letters[expr] = name
    return letters[expr]


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
