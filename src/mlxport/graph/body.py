"""The statements of one scope: names from the original source, expressions that are used once written in place."""

from __future__ import annotations

import ast
import builtins
import copy
import keyword
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch.fx import Node

from mlxport.graph import sizes
from mlxport.graph.capture import Captured
from mlxport.graph.expr import to_ast
from mlxport.graph.naming import forward_names
from mlxport.graph.origin import Statement, statement
from mlxport.graph.registry import HELPERS
from mlxport.graph.tree import Scope

__all__ = ["Body", "Step", "build_body"]

_LONGEST = 100  # characters of an expression that is still written in place


@dataclass
class Step:
    """``targets = value``; no target for a bare expression."""

    targets: tuple[str, ...]
    value: ast.expr


@dataclass
class Body:
    """What the class of a scope contains.

    Attributes:
        scope: The scope.
        parameters: Names of the arguments of ``__call__``, with the node or size that each one is.
        steps: Statements, in order.
        result: What is returned; None for nothing.
        used: Weights, layers and calls by their path relative to the scope.
    """

    scope: Scope
    parameters: dict[str, Node | sympy.Expr]
    steps: list[Step] = field(default_factory=list)
    result: ast.expr | None = None
    used: dict[str, Any] = field(default_factory=dict)


class _Builder:
    def __init__(
        self,
        captured: Captured,
        scope: Scope,
        lowered: Mapping[Node, Any],
        children: Mapping[str, Body],
        result: ast.expr | None,
        names: Mapping[Node, str],
    ) -> None:
        self.captured, self.scope, self.lowered, self.children = captured, scope, lowered, children
        self.module = captured.modules.get(scope.path)
        self.wanted_result = result
        self.given = names
        self.units = [unit for unit in scope.items if isinstance(unit, Scope) or self._emits(unit)]
        self.producer: dict[Node, int] = {}
        for index, unit in enumerate(self.units):
            for node in self.results(unit):
                self.producer[node] = index
        self.uses = self._count_uses()
        self.names: dict[Node, str] = {}
        self.bound: dict[str, Node | None] = {}
        self.body = Body(scope, {})
        self.used_names: set[str] = set()

    def _emits(self, node: Node) -> bool:
        return node in self.lowered and not isinstance(self.lowered[node], tuple)

    # What a unit gives.
    def results(self, unit: Node | Scope) -> list[Node]:
        if isinstance(unit, Scope):
            return unit.outputs
        return [unit]

    # The syntax of a unit with ``%node`` names in it.
    def syntax(self, unit: Node | Scope) -> ast.expr:
        if isinstance(unit, Node):
            return to_ast(self.lowered[unit])
        child = self.children[unit.key]
        arguments = []
        for item in child.parameters.values():
            arguments.append(ast.Name("%" + item.name) if isinstance(item, Node) else sizes.placeholder(item))
        return ast.Call(ast.Name("@" + unit.path), arguments, [])

    def references(self, tree: ast.expr) -> list[str]:
        return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id[:1] in "%$@"]

    def _count_uses(self) -> dict[str, list[int]]:
        """Node name to the index of each unit that refers to it, once per reference; the result is a last unit."""
        uses: dict[str, list[int]] = {}
        for index, unit in enumerate(self.units):
            for reference in self.references(self.syntax(unit)):
                if reference[0] == "%":
                    uses.setdefault(reference[1:], []).append(index)
        for reference in self.references(self.result_syntax()):
            if reference[0] == "%":
                uses.setdefault(reference[1:], []).append(len(self.units))
        return uses

    def result_syntax(self) -> ast.expr:
        if self.wanted_result is not None:
            return self.wanted_result
        names: list[ast.expr] = [ast.Name("%" + node.name) for node in self.scope.outputs]
        return names[0] if len(names) == 1 else ast.Tuple(names)

    # Sizes.
    def needed_sizes(self) -> list[sympy.Expr]:
        found: dict[str, sympy.Expr] = {}
        for tree in [*map(self.syntax, self.units), self.result_syntax()]:
            for reference in self.references(tree):
                if reference[0] == "$":
                    found.setdefault(reference, sizes.expression(reference))
        return list(found.values())

    def plan_sizes(self) -> None:
        """Decide where each size comes from: an argument's shape, a local value's, or an argument of its own."""
        self.size_names: dict[sympy.Expr, str] = {}
        self.size_steps: dict[int, list[Step]] = {}  # unit index (-1: the beginning) to definitions after it
        self.pinned: set[Node] = set()
        providers: dict[sympy.Expr, tuple[int, Node, int]] = {}
        for node in self.scope.inputs:
            if node not in self.captured.weights:
                self._provide(providers, -1, node)
        first_input = dict(providers)
        for index, unit in enumerate(self.units):
            for node in self.results(unit):
                self._provide(providers, index, node)
        chosen: dict[Node, dict[int, sympy.Expr]] = {}
        self.size_inputs: list[sympy.Expr] = []
        for wanted in self.needed_sizes():
            for part in self._available(wanted, providers):
                if part in providers:
                    _, node, axis = first_input.get(part) or providers[part]
                    chosen.setdefault(node, {})[axis] = part
                elif part not in self.size_inputs:
                    self.size_inputs.append(part)
        self.chosen = chosen
        self.providers = providers

    def _provide(self, providers: dict[sympy.Expr, tuple[int, Node, int]], index: int, node: Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            for axis, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt):
                    providers.setdefault(size.node.expr, (index, node, axis))
        elif isinstance(value, torch.SymInt):
            providers.setdefault(value.node.expr, (index, node, -1))

    def _available(self, wanted: sympy.Expr, providers: Mapping[sympy.Expr, Any]) -> list[sympy.Expr]:
        """The sizes, known as they are, that ``wanted`` is computed from."""
        if wanted.is_number:
            return []
        if wanted in providers:
            return [wanted]
        if not wanted.args:
            return [wanted]
        return [part for arg in wanted.args for part in self._available(arg, providers)]

    # Names.
    def fresh(self, base: str, index: int) -> str:
        """``base``, or ``base_2`` … while an older value of that name is still needed after unit ``index``."""
        base = re.sub(r"\W", "_", base) or "x"
        if base[0].isdigit():
            base = "x" + base
        number = 1
        name = base
        while self._taken(name, index):
            number += 1
            name = f"{base}_{number}"
        return name

    def _taken(self, name: str, index: int) -> bool:
        if keyword.iskeyword(name) or name in ("mx", "nn", "math", "self") or name in HELPERS or name in self.reserved:
            return True
        if name in dir(builtins) and name in (
            "len",
            "int",
            "float",
            "range",
            "zip",
            "max",
            "min",
            "tuple",
            "list",
            "print",
        ):
            return True
        holder = self.bound.get(name)
        return holder is not None and self.last_use(holder) > index

    def last_use(self, node: Node) -> int:
        """Index of the last unit that refers to ``node`` once expressions are written in place."""
        last = -1
        for index in self.uses.get(node.name, ()):
            while index < len(self.units) and self.placed.get(index) is not None:
                index = self.placed[index]
            last = max(last, index)
        if node in self.pinned:
            last = max(last, self.pin_until.get(node, -1))
        return last

    # Which units are written in place of their use.
    def plan_placing(self) -> None:
        self.placed: dict[int, int] = {}
        self.pin_until: dict[Node, int] = {}
        self.statements: list[Statement | None] = [self._statement(unit) for unit in self.units]
        lengths: dict[int, int] = {}
        for index, unit in enumerate(self.units):
            tree = self.syntax(unit)
            lengths[index] = _length(tree)
            for reference in self.references(tree):
                source = self._unit_of(reference)
                if source is not None and self.placed.get(source) == index:
                    lengths[index] += lengths[source]
        for index, unit in enumerate(self.units):
            target = self._place(index, unit)
            if target is not None:
                total = lengths[index] + (lengths.get(target, 0) if target < len(self.units) else 0)
                if total <= _LONGEST or (isinstance(unit, Node) and lengths[index] <= 24):
                    self.placed[index] = target
                    if target < len(self.units):
                        lengths[target] += lengths[index]

    def _unit_of(self, reference: str) -> int | None:
        if reference[0] != "%":
            return None
        return next((i for node, i in self.producer.items() if node.name == reference[1:]), None)

    def _place(self, index: int, unit: Node | Scope) -> int | None:
        results = self.results(unit)
        if len(results) != 1 or results[0] in self.chosen or results[0] in self.mutated:
            return None
        uses = self.uses.get(results[0].name, [])
        if len(uses) != 1:
            return None
        target = uses[0]
        mine = self.statements[index]
        if _in_list(unit) and (target == len(self.units) or _siblings(unit, self.units[target])):
            return None  # a round of a loop is a statement
        if target == len(self.units):
            return None if isinstance(self.result_syntax(), ast.Name) is False and mine and mine.names else target
        if isinstance(unit, Node) and self._is_list(unit):
            return target
        theirs = self.statements[target]
        if _sequential(self.captured, unit) and _sequential(self.captured, self.units[target]):
            return None
        if mine is not None and mine.names and mine != theirs:
            return None
        return target

    def _is_list(self, node: Node) -> bool:
        return isinstance(node.meta.get("val"), tuple | list)

    def _statement(self, unit: Node | Scope) -> Statement | None:
        nodes = self.results(unit)
        return statement(nodes[-1], self.module) if nodes else None

    # Writing.
    def build(self, reserved: set[str]) -> Body:
        self.reserved = reserved
        self.mutated = {node for _, node in self.captured.mutations}
        self.plan_sizes()
        self.plan_placing()
        self._parameters()
        self._define_sizes(-1, None)
        trees: dict[int, ast.expr] = {}
        for index, unit in enumerate(self.units):
            tree = self._resolve(copy.deepcopy(self.syntax(unit)), trees)
            if index in self.placed:
                trees[index] = tree
                continue
            self._write(index, unit, tree)
        result = self._resolve(copy.deepcopy(self.result_syntax()), trees)
        self.body.result = result
        self._simplify_return()
        return self.body

    def _simplify_return(self) -> None:
        """``x = f(y); return x`` is ``return f(y)``."""
        steps, result = self.body.steps, self.body.result
        if (
            steps
            and isinstance(result, ast.Name)
            and steps[-1].targets == (result.id,)
            and not _calls_element(steps[-1].value)
        ):
            self.body.result = steps.pop().value

    def _parameters(self) -> None:
        names = forward_names(self.module)
        for node in self.scope.inputs:
            name = self.fresh(self.given.get(node, node.name), -1)
            number = 1
            while name in self.body.parameters:
                number += 1
                name = self.fresh(f"{self.given.get(node, node.name)}_{number}", -1)
            self._bind(name, node)
            self.body.parameters[name] = node
        order = {name: index for index, name in enumerate(names)}
        self.body.parameters = dict(
            sorted(self.body.parameters.items(), key=lambda item: order.get(item[0], len(order)))
        )
        for wanted in self.size_inputs:
            name = self.fresh(sizes.size_name(self.captured, wanted), -1)
            self.body.parameters[name] = wanted
            self.size_names[wanted] = name
            self.bound[name] = None
            self.reserved = self.reserved | {name}

    def _bind(self, name: str, node: Node) -> None:
        self.names[node] = name
        self.bound[name] = node

    def _write(self, index: int, unit: Node | Scope, tree: ast.expr) -> None:
        results = self.results(unit)
        if len(results) == 1:
            if self._unpack(index, results[0], tree):
                return
            name = self.fresh(self._wish(index, unit, results[0]), index)
            self._bind(name, results[0])
            self.body.steps.append(Step((name,), tree))
        else:
            statement_ = self.statements[index]
            wishes = statement_.names if statement_ and len(statement_.names) == len(results) else ()
            names = []
            for position, node in enumerate(results):
                wish = wishes[position] if wishes else self._wish(index, unit, node)
                name = self.fresh(wish if wish != "_" else node.name, index)
                while name in names:
                    name = self.fresh(name + "_2", index)
                names.append(name)
                self._bind(name, node)
            self.body.steps.append(Step(tuple(names), tree))
        for node in results:
            self._define_sizes(index, node)

    def _unpack(self, index: int, node: Node, tree: ast.expr) -> bool:
        """``a, b = f(x)`` for an op with several results whose parts all have names of their own."""
        if not self._is_list(node):
            return False
        parts = {user.args[1]: user for user in node.users if user.target is operator.getitem}
        count = len(node.meta["val"])
        if len(parts) != len(node.users) or any(part not in self.producer for part in parts.values()):
            return False
        if any(self.producer[part] in self.placed for part in parts.values()):
            for part in parts.values():
                self.placed.pop(self.producer[part], None)
        names = []
        for position in range(count):
            part = parts.get(position)
            if part is None:
                names.append("_")
                continue
            where = self.producer[part]
            name = self.fresh(self._wish(where, part, part), index)
            while name in names:
                name = self.fresh(name + "_2", index)
            names.append(name)
            self._bind(name, part)
            self.unpacked.add(part)
        self.body.steps.append(Step(tuple(names), tree))
        for part in parts.values():
            self._define_sizes(index, part)
        return True

    def _wish(self, index: int, unit: Node | Scope, node: Node) -> str:
        own = self.statements[index]
        if own is not None and own.names:
            last = max((i for i, s in enumerate(self.statements) if s == own), default=index)
            if len(own.names) == 1:
                if index == last or self._leaves(node, own):
                    return own.names[0]
            else:
                leaving = [
                    n
                    for i, s in enumerate(self.statements)
                    if s == own
                    for n in self.results(self.units[i])
                    if self._leaves(n, own)
                ]
                if len(leaving) == len(own.names) and node in leaving and own.names[leaving.index(node)] != "_":
                    return own.names[leaving.index(node)]
        if _sequential(self.captured, unit):
            return "x"
        if _in_list(unit):
            return self.given_output(unit)
        return _op_name(node) if isinstance(unit, Node) else _snake(unit.path)

    def given_output(self, unit: Scope) -> str:
        """An unnamed round of a loop hands on what it was handed."""
        child = self.children[unit.key]
        first = next((name for name, item in child.parameters.items() if isinstance(item, Node)), "x")
        return first

    def _leaves(self, node: Node, own: Statement) -> bool:
        """Whether the value is used outside the statement that computes it."""
        for index in self.uses.get(node.name, ()):
            if index >= len(self.units) or self.statements[index] != own:
                return True
        return False

    def _define_sizes(self, index: int, only: Node | None) -> None:
        """Write ``B, L, _ = x.shape`` for the sizes that are taken from what is now known."""
        for node, axes in self.chosen.items():
            if (only is None and node not in self.scope.inputs) or (only is not None and node is not only):
                continue
            if node not in self.names:
                continue
            variable = ast.Name(self.names[node])
            if -1 in axes:
                self.size_names[axes[-1]] = self.names[node]
                continue
            for size in axes.values():
                name = self.fresh(sizes.size_name(self.captured, size), index)
                self.size_names[size] = name
                self.reserved = self.reserved | {name}
            value = node.meta["val"]
            if len(axes) == 1:
                ((axis, size),) = axes.items()
                shape = ast.Subscript(ast.Attribute(variable, "shape"), ast.Constant(axis))
                self.body.steps.append(Step((self.size_names[size],), shape))
            else:
                names = tuple(self.size_names[axes[axis]] if axis in axes else "_" for axis in range(value.ndim))
                self.body.steps.append(Step(names, ast.Attribute(variable, "shape")))

    def _resolve(self, tree: ast.expr, trees: Mapping[int, ast.expr]) -> ast.expr:
        builder = self

        class Resolver(ast.NodeTransformer):
            def visit_Name(self, node: ast.Name) -> ast.expr:  # noqa: N802
                if node.id[:1] == "%":
                    return builder.value(node.id[1:], trees)
                if node.id[:1] == "$":
                    return sizes.written(sizes.expression(node.id), builder.size_names)
                if node.id[:1] == "@":
                    return builder.member(node.id[1:])
                return node

        resolved: ast.expr = Resolver().visit(tree)
        return resolved

    def value(self, name: str, trees: Mapping[int, ast.expr]) -> ast.expr:
        node = next((n for n in self.producer if n.name == name), None)
        if node is not None:
            index = self.producer[node]
            if node not in self.names and index in trees:
                return trees[index]
            return ast.Name(self.names[node])
        for other, variable in self.names.items():
            if other.name == name:
                return ast.Name(variable)
        for weight, full in self.captured.weights.items():
            if weight.name == name:
                return self.member(full, weight)
        raise KeyError(f"{name} is not known in {self.scope.path or 'the root'}")

    def member(self, full: str, weight: Any = None) -> ast.expr:
        """``self.layers[0].weight`` for a path of the module tree."""
        relative = full[len(self.scope.path) + 1 :] if self.scope.path else full
        self.body.used.setdefault(relative, weight)
        return path_syntax(relative)

    @property
    def unpacked(self) -> set[Node]:
        if not hasattr(self, "_unpacked"):
            self._unpacked: set[Node] = set()
        return self._unpacked


def _calls_element(tree: ast.expr) -> bool:
    """Whether the expression calls an element of a list: the last round of a loop stays with the others."""
    return isinstance(tree, ast.Call) and isinstance(tree.func, ast.Subscript)


def path_syntax(relative: str) -> ast.expr:
    """``self.a[0].b`` for ``a.0.b``."""
    tree: ast.expr = ast.Name("self")
    for part in relative.split("."):
        tree = ast.Subscript(tree, ast.Constant(int(part))) if part.isdigit() else ast.Attribute(tree, attribute(part))
    return tree


def attribute(name: str) -> str:
    """A module's name as a Python attribute."""
    return name + "_" if keyword.iskeyword(name) else name


def _sequential(captured: Captured, unit: Node | Scope) -> bool:
    """Whether the unit is an element of an nn.Sequential."""
    if isinstance(unit, Scope):
        return isinstance(captured.modules.get(unit.path.rpartition(".")[0]), torch.nn.Sequential)
    stack = [path.partition("@")[0] for path, _ in (unit.meta.get("nn_module_stack") or {}).values()]
    return any(isinstance(captured.modules.get(path.rpartition(".")[0]), torch.nn.Sequential) for path in stack[-1:])


def _length(tree: ast.expr) -> int:
    """Characters of the expression, all graph names counted alike, so that equal layers are written alike."""
    text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(tree)))
    return len(re.sub(r"[%$@][\w.]+", "......", text))


def _in_list(unit: Node | Scope) -> bool:
    return isinstance(unit, Scope) and unit.path.rpartition(".")[2].isdigit()


def _siblings(unit: Node | Scope, other: Node | Scope) -> bool:
    """Whether both are calls of elements of one list: rounds of a loop, each a statement of its own."""
    if not isinstance(unit, Scope) or not isinstance(other, Scope):
        return False
    (a, i), (b, j) = (item.path.rpartition(".")[::2] for item in (unit, other))
    return a == b and i.isdigit() and j.isdigit()


def _op_name(node: Node) -> str:
    name = getattr(node.target, "_schema", None)
    base = name.name.rpartition("::")[2] if name is not None else getattr(node.target, "__name__", "x")
    if base == "layer":
        base = _snake(node.meta["layer"].path)
    base = base.strip("_")
    return {"getitem": "part", "view": "x", "permute": "x", "transpose": "x", "_to_copy": "x", "to_copy": "x"}.get(
        base, base
    )


def _snake(path: str) -> str:
    parts = [part for part in path.split(".") if not part.isdigit()]
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", parts[-1] if parts else "x").lower()


def build_body(
    captured: Captured,
    scope: Scope,
    lowered: Mapping[Node, Any],
    children: Mapping[str, Body],
    names: Mapping[Node, str],
    *,
    result: ast.expr | None = None,
    reserved: set[str] | None = None,
) -> Body:
    """The body of ``scope``, whose inner calls have ``children``'s; ``names``: what values are called outside."""
    return _Builder(captured, scope, lowered, children, result, names).build(reserved or set())
