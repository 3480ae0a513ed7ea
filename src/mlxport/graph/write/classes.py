"""Turn scopes into classes: one for all that do the same, with what differs between them as arguments."""

from __future__ import annotations

import ast
import builtins
import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.expr import to_ast
from mlxport.graph.lower.layer_specs import DEFAULTS, LayerSpec
from mlxport.graph.lower.registry import HELPERS
from mlxport.graph.write.number_names import Field, Namer, exact, is_number
from mlxport.graph.write.scope_parts import Body, Context, Step

__all__ = ["ClassDef", "build_classes"]

# Where integers say which axis, not how many: they belong to the wiring of a class.
_WIRING_KEYWORDS = frozenset({"axis", "axes", "dim", "start_axis", "end_axis", "bias", "offset"})
_WIRING_CALLS = frozenset(
    {"transpose", "moveaxis", "squeeze", "expand_dims", "swapaxes", "flatten", "concatenate", "stack"}
)


@dataclass
class Hole:
    """A number in the code of a class, which may differ between its instances."""

    constant: ast.Constant
    tag: str
    init: bool


@dataclass
class ClassDef:
    """A class of the port.

    Attributes:
        name: Its name.
        parameters: Arguments of ``__call__``.
        init: Path within the class and the expression that makes it, in the order of the original.
        steps: Statements of ``__call__``.
        result: What it returns.
        options: Arguments of the constructor: name and the value of each instance, by path.
        attributes: Numbers kept by the constructor for ``__call__``: name and expression.
        module: An instance of the original.
    """

    name: str
    parameters: tuple[str, ...]
    init: dict[str, ast.expr]
    steps: list[Step]
    result: ast.expr | None
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    attributes: dict[str, ast.expr] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    module: torch.nn.Module | None = None
    needs_args: bool = False
    paths: tuple[str, ...] = ()


_TAKEN = frozenset(
    "ModelArgs Path Any dataclass field fields json load math mx nn check_inputs check_fixed".split()
) | set(dir(builtins))


def build_classes(
    context: Context, bodies: list[Body], layers: Mapping[str, LayerSpec], shapes: Mapping[str, Any]
) -> tuple[list[ClassDef], list[Field], dict[str, ClassDef]]:
    """Classes for ``bodies`` (inner scopes first), the fields that they name, and the class of each path.

    Args:
        context: The program.
        bodies: One per module.
        layers: Path to layer.
        shapes: Path of a weight that is not a layer's to the expression that allocates it.
    """
    captured = context.captured
    namer = Namer(captured)
    order = _order(captured)
    classes: list[ClassDef] = []
    by_path: dict[str, ClassDef] = {}
    root = type(captured.modules[""]).__name__
    taken = {*_TAKEN, *HELPERS} | (set() if root == "Model" else {"Model"})
    for level in _levels(bodies):
        groups: dict[str, list[tuple[Body, ClassDef, list[Hole]]]] = defaultdict(list)
        for body in level:
            draft = _draft(context, body, layers, shapes, by_path, order)
            holes = _holes(draft)
            groups[_key(captured, body, draft, holes)].append((body, draft, holes))
        for members in groups.values():
            if members[0][0].scope.path and members[0][1].name == root:
                taken.add(root)  # the root keeps its name
            merged = _merge(captured, members, namer, taken)
            classes.append(merged)
            by_path.update({body.scope.path: merged for body, _, _ in members})
    used = [namer.fields[name] for name in namer.fields]
    return classes, used, by_path


def _levels(bodies: list[Body]) -> list[list[Body]]:
    """Bodies by what they contain: first those that have no inner modules."""
    by_path = {body.scope.path: body for body in bodies}
    heights: dict[str, int] = {}

    def height(path: str) -> int:
        if path not in heights:
            inner = [height(full) for full in by_path[path].used if full in by_path]
            heights[path] = 1 + max(inner, default=0)
        return heights[path]

    levels: dict[int, list[Body]] = defaultdict(list)
    for body in bodies:
        levels[height(body.scope.path)].append(body)
    return [levels[key] for key in sorted(levels)]


def _draft(
    context: Context,
    body: Body,
    layers: Mapping[str, LayerSpec],
    shapes: Mapping[str, Any],
    by_path: Mapping[str, ClassDef],
    order: Mapping[str, int],
) -> ClassDef:
    captured = context.captured
    init: dict[str, ast.expr] = {}
    buffers = []
    for full in sorted(body.used, key=lambda name: order.get(name, len(order))):
        relative = context.paths.relative(full, body.scope.path)
        if full in by_path:
            init[relative] = _construct(by_path[full], full)
        elif full in layers:
            init[relative] = layer_syntax(layers[full])
        else:
            init[relative] = copy.deepcopy(shapes[full])
            if full not in captured.trainable:
                buffers.append(relative)
    module = captured.modules.get(body.scope.path)
    return ClassDef(
        type(module).__name__.removeprefix("Parametrized") if module is not None else "Model",
        tuple(body.parameters),
        init,
        [replace(step, value=copy.deepcopy(step.value)) for step in body.steps],
        copy.deepcopy(body.result),
        buffers=tuple(sorted(buffers)),
        module=module,
    )


def _order(captured: Captured) -> dict[str, int]:
    """Where the original's constructor has each module, parameter and buffer."""
    names = []
    for path, module in captured.modules.items():
        own = [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]
        names += [f"{path}.{name}" if path else name for name in own]
        names.append(path)
    return {name: index for index, name in enumerate(names)}


def _construct(cls: ClassDef, path: str) -> ast.expr:
    arguments: list[ast.expr] = [ast.Name("args")] if cls.needs_args else []
    keywords = [ast.keyword(name, to_ast(values[path])) for name, values in cls.options.items()]
    return ast.Call(ast.Name(cls.name), arguments, keywords)


def layer_syntax(spec: LayerSpec) -> ast.expr:
    """``nn.Linear(768, 768)`` for a layer."""
    items = list(spec.args.items())
    call = ast.Call(ast.parse(spec.constructor, mode="eval").body, [], [])
    for index, (key, value) in enumerate(items):
        tree = to_ast(value)
        tree._tag = key  # type: ignore[attr-defined]
        if index < spec.positional:
            call.args.append(tree)
        else:
            call.keywords.append(ast.keyword(key, tree))
    return call


def _holes(draft: ClassDef) -> list[Hole]:
    holes: list[Hole] = []
    for path, tree in draft.init.items():
        _find(
            tree, holes, True, "weight" if isinstance(tree, ast.Call) and _called(tree) in ("zeros", "ones") else path
        )
    for step in draft.steps:
        _find(step.value, holes, False, "")
    if draft.result is not None:
        _find(draft.result, holes, False, "")
    return holes


def _find(tree: ast.AST, holes: list[Hole], init: bool, tag: str) -> None:
    tag = getattr(tree, "_tag", tag)
    if isinstance(tree, ast.Constant):
        if is_number(tree.value):
            holes.append(Hole(tree, tag, init))
        return
    if isinstance(tree, ast.Subscript):
        _find(tree.value, holes, init, tag)
        return
    if isinstance(tree, ast.Call):
        if _called(tree) in _WIRING_CALLS:
            for arg in [tree.func, *(a for a in tree.args if not isinstance(a, ast.Constant | ast.UnaryOp))]:
                _find(arg, holes, init, tag)
            return
        for child in [tree.func, *tree.args]:
            _find(child, holes, init, tag if init else _called(tree))
        for keyword in tree.keywords:
            if keyword.arg not in _WIRING_KEYWORDS:
                _find(keyword.value, holes, init, keyword.arg or tag)
        return
    for part in ast.iter_child_nodes(tree):
        _find(part, holes, init, tag)


def _called(tree: ast.Call) -> str:
    return tree.func.attr if isinstance(tree.func, ast.Attribute) else getattr(tree.func, "id", "")


def _key(captured: Captured, body: Body, draft: ClassDef, holes: list[Hole]) -> str:
    values = [hole.constant.value for hole in holes]
    kinds = [type(value).__name__ for value in values]
    for hole in holes:
        hole.constant.value = "#"
    parts = [type(draft.module).__qualname__, repr(draft.parameters), repr(draft.buffers), repr(kinds)]
    parts += [f"{path}={ast.unparse(ast.fix_missing_locations(tree))}" for path, tree in draft.init.items()]
    parts += [
        f"{step.depth} {step.targets}={ast.unparse(ast.fix_missing_locations(step.value))}" for step in draft.steps
    ]
    parts.append(ast.unparse(ast.fix_missing_locations(draft.result)) if draft.result is not None else "")
    for hole, value in zip(holes, values, strict=True):
        hole.constant.value = value
    return "\n".join(parts)


def _merge(
    captured: Captured, members: list[tuple[Body, ClassDef, list[Hole]]], namer: Namer, taken: set[str]
) -> ClassDef:
    """The class of all ``members``: numbers that differ become options, equal ones with a name fields of ``args``."""
    _, merged, holes = members[0]
    merged.name = _unique(merged.name, taken)
    merged.paths = tuple(body.scope.path for body, _, _ in members)
    columns = [tuple(other[index].constant.value for _, _, other in members) for index in range(len(holes))]
    names: dict[tuple[Any, ...], str] = {}
    replacements: dict[int, ast.expr] = {}
    for hole, column in zip(holes, columns, strict=True):
        if len(set(map(exact, column))) > 1:
            if column not in names:
                names[column] = _option_name(captured, members, hole, column, set(names.values()))
            name = names[column]
            replacements[id(hole.constant)] = ast.Name(name) if hole.init else ast.Attribute(ast.Name("self"), name)
            if not hole.init:
                merged.attributes[name] = ast.Name(name)
        elif named := _named(captured, members, hole, namer):
            value = ast.Attribute(ast.Name("args"), named)
            if hole.init:
                replacements[id(hole.constant)] = value
            else:
                merged.attributes[named] = value
                replacements[id(hole.constant)] = ast.Attribute(ast.Name("self"), named)
            merged.needs_args = True
    for column, name in names.items():
        merged.options[name] = {body.scope.path: value for (body, _, _), value in zip(members, column, strict=True)}
    _replace(merged, replacements)
    for tree in merged.init.values():
        _drop_defaults(tree)
    trees = [*merged.init.values()]
    if any(isinstance(node, ast.Name) and node.id == "args" for tree in trees for node in ast.walk(tree)):
        merged.needs_args = True
    return merged


def _drop_defaults(tree: ast.expr) -> None:
    """Leave out arguments of layers that say what is the default."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            call.keywords = [
                item
                for item in call.keywords
                if not isinstance(item.value, ast.Constant) or DEFAULTS.get(item.arg or "", ()) != item.value.value
            ]


def _named(
    captured: Captured, members: list[tuple[Body, ClassDef, list[Hole]]], hole: Hole, namer: Namer
) -> str | None:
    if hole.init:
        return namer.find(hole.constant.value, hole.tag)
    if hole.tag not in ("reshape", "split", "unflatten"):
        return None
    own = vars(captured.modules[members[0][0].scope.path])
    for name, value in own.items():
        if is_number(value) and exact(value) == exact(hole.constant.value) and value > 2 and not name.startswith("_"):
            if name in namer.values.get(exact(value), ()) and any(w in name for w in ("head", "dim", "size", "group")):
                namer.fields.setdefault(name, Field(name, value))
                return name
    return None


def _option_name(
    captured: Captured,
    members: list[tuple[Body, ClassDef, list[Hole]]],
    hole: Hole,
    column: tuple[Any, ...],
    taken: set[str],
) -> str:
    """What an option is called: an attribute of the original modules that has its values, else the layer's own word."""
    modules = [captured.modules.get(body.scope.path) for body, _, _ in members]
    for name in vars(modules[0]) if modules[0] is not None else ():
        if not name.startswith("_") and all(
            exact(vars(m).get(name)) == exact(v) for m, v in zip(modules, column, strict=True)
        ):
            if name not in taken:
                return name
    base = hole.tag if hole.tag.isidentifier() else "size"
    base = {"zeros": "size", "ones": "size", "weight": "size", "input_dims": "in_dims", "output_dims": "out_dims"}.get(
        base, base
    )
    name, number = base, 1
    while name in taken or name in ("args", "self"):
        number += 1
        name = f"{base}_{number}"
    return name


def _unique(name: str, taken: set[str]) -> str:
    base, number = name, 1
    while name in taken:
        number += 1
        name = f"{base}{number}"
    taken.add(name)
    return name


def _replace(cls: ClassDef, replacements: Mapping[int, ast.expr]) -> None:
    class Replacer(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.expr:  # noqa: N802
            return copy.deepcopy(replacements.get(id(node), node))

    visit: Callable[[ast.expr], Any] = Replacer().visit
    cls.init = {path: visit(tree) for path, tree in cls.init.items()}
    for step in cls.steps:
        step.value = visit(step.value)
    if cls.result is not None:
        cls.result = visit(cls.result)
