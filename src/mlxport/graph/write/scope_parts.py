"""What a scope consists of: its op nodes and inner calls, their syntax, and who uses what."""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.origin import Statement, loop_depth, statement, statement_at
from mlxport.graph.capture.stores import store
from mlxport.graph.lower import symbolic_sizes, token_ops
from mlxport.graph.lower.expr import to_ast
from mlxport.graph.lower.loop_ops import leaves_loop, loops_of
from mlxport.graph.write.paths import Paths
from mlxport.graph.write.token_loops import call_for_each_token
from mlxport.graph.write.tree import Scope

__all__ = ["Body", "Context", "Reference", "Step", "ScopeParts", "is_list"]


@dataclass
class Step:
    """``targets = value``; no target for a bare expression.

    Attributes:
        targets: Names, or places to write to.
        value: What they are assigned.
        depth: In how many loops it stands.
        loop: Whether it opens one instead: ``for targets in value:``.
    """

    targets: tuple[str, ...]
    value: ast.expr
    depth: int = 0
    loop: bool = False


@dataclass(frozen=True)
class Reference:
    """An argument that is a module of another part of the tree, by its path."""

    path: str


@dataclass
class Body:
    """What the class of a scope contains.

    Attributes:
        scope: The scope.
        parameters: Names of the arguments of ``__call__``, with the node, size or module that each one is.
        steps: Statements, in order.
        result: What is returned; None for nothing.
        used: Full paths of the weights, layers and modules that it has.
        outputs: What the scope itself calls its results.
    """

    scope: Scope
    parameters: dict[str, Node | sympy.Expr | Reference]
    steps: list[Step] = field(default_factory=list)
    result: ast.expr | None = None
    used: dict[str, None] = field(default_factory=dict)
    outputs: dict[Node, str] = field(default_factory=dict)


@dataclass
class Context:
    """What all scopes of a program share.

    Attributes:
        captured: The program.
        lowered: Node to expression.
        paths: Names of the port.
        weights: Placeholder's name to its node.
        bodies: Key of a call to its body, as they are built.
    """

    captured: Captured
    lowered: Mapping[Node, Any]
    paths: Paths
    weights: Mapping[str, Node]
    bodies: dict[str, Body] = field(default_factory=dict)


def is_list(node: Node) -> bool:
    """Whether the node has several results."""
    return isinstance(node.meta.get("val"), tuple | list)


class ScopeParts:
    """The parts of one scope in order, each an op or an inner call."""

    def __init__(self, context: Context, scope: Scope, result: ast.expr | None) -> None:
        self.context, self.scope = context, scope
        self.module = context.captured.modules.get(scope.path)
        self.all = [unit for unit in scope.items if isinstance(unit, Scope) or self._emits(unit)]
        self.trees = [self._syntax(unit) for unit in self.all]
        self.result = result if result is not None else self._outputs()
        self.references = [
            [*_references(tree), *_stored_in(unit)] for unit, tree in zip(self.all, self.trees, strict=True)
        ]
        self.result_references = _references(self.result)
        self.statements: list[Statement | None] = [self._statement(unit) for unit in self.all]
        self._within_calls()
        self.producer = {node: index for index, unit in enumerate(self.all) for node in self.results(unit)}
        self.by_name = {node.name: node for node in self.producer}
        self.uses: dict[str, list[int]] = {}
        for index, found in enumerate([*self.references, self.result_references]):
            for name in found:
                if name[0] == "%":
                    self.uses.setdefault(name[1:], []).append(index)
        self._leaving: dict[Statement, list[Node]] = {}
        self.of_statement: dict[Statement, list[int]] = {}
        for index, made in enumerate(self.statements):
            if made is not None:
                self.of_statement.setdefault(made, []).append(index)

    def __len__(self) -> int:
        return len(self.all)

    def _emits(self, node: Node) -> bool:
        return node in self.context.lowered and not isinstance(self.context.lowered[node], tuple)

    def results(self, unit: Node | Scope) -> list[Node]:
        """The values that a unit gives."""
        if isinstance(unit, Scope):
            return unit.outputs
        return [] if unit.target in (store, token_ops.keep_token) else [unit]

    def _statement(self, unit: Node | Scope) -> Statement | None:
        nodes = self.results(unit)
        if not nodes or leaves_loop(nodes[-1]) or "element" in nodes[-1].meta:
            return None
        return statement(nodes[-1], self.module)

    def _within_calls(self) -> None:
        """Of a statement that calls a function with a loop, take those of the function instead."""
        depths: dict[Statement, int] = {}
        for unit, made in zip(self.all, self.statements, strict=True):
            depth = loop_depth(self._node(unit)) if made is not None and _in_loop(unit) else None
            if depth is not None and made is not None:
                depths[made] = min(depth, depths.get(made, depth))
        for index, (unit, made) in enumerate(zip(self.all, self.statements, strict=True)):
            node = self._node(unit)
            if made is not None and made in depths and node is not None:
                called = None if isinstance(unit, Node) else self.context.captured.modules.get(unit.path)
                self.statements[index] = statement_at(node, depths[made], called)

    def _node(self, unit: Node | Scope) -> Node | None:
        nodes = self.results(unit)
        return nodes[-1] if nodes else None

    def _syntax(self, unit: Node | Scope) -> ast.expr:
        """The unit with ``%node``, ``$size`` and ``@module`` for names."""
        if isinstance(unit, Node):
            return to_ast(self.context.lowered[unit])
        arguments: list[ast.expr] = []
        for item in self.context.bodies[unit.key].parameters.values():
            if isinstance(item, Node):
                arguments.append(ast.Name("%" + item.name))
            elif isinstance(item, Reference):
                arguments.append(ast.Name("@" + item.path))
            else:
                arguments.append(symbolic_sizes.placeholder(item))
        call = ast.Call(ast.Name("@" + unit.path), arguments, [])
        captured = self.context.captured
        return call_for_each_token(captured, unit, call) if unit.path in captured.each_token else call

    def _outputs(self) -> ast.expr:
        names: list[ast.expr] = [ast.Name("%" + node.name) for node in self.scope.outputs]
        if not names:
            return ast.Constant(None)
        return names[0] if len(names) == 1 else ast.Tuple(names)

    def leaves(self, node: Node, own: Statement) -> bool:
        """Whether the value is used outside the statement that computes it."""
        return any(index >= len(self.all) or self.statements[index] != own for index in self.uses.get(node.name, ()))

    def leaving(self, own: Statement) -> list[Node]:
        """The values of a statement that are used outside of it."""
        if own not in self._leaving:
            results = [node for index in self.of_statement[own] for node in self.results(self.all[index])]
            self._leaving[own] = [node for node in results if self.leaves(node, own)]
        return self._leaving[own]

    def sizes(self) -> list[tuple[int, sympy.Expr]]:
        """The dynamic sizes that the code mentions, each with the index of the first unit that does."""
        found: dict[str, int] = {}
        for index, names in enumerate([*self.references, self.result_references]):
            for name in names:
                if name[0] == "$":
                    found.setdefault(name, index)
        return [(index, symbolic_sizes.expression(name)) for name, index in found.items()]

    def foreign(self) -> list[str]:
        """Paths of modules outside the scope that it calls."""
        prefix = self.scope.path + "."
        found = {
            name[1:]: None
            for names in self.references
            for name in names
            if name[0] == "@" and self.scope.path and not name[1:].startswith(prefix)
        }
        return list(found)

    def parts(self, node: Node) -> dict[int, Node] | None:
        """Of a node with several results: index to the node of each part, None if it is used otherwise."""
        parts: dict[int, Node] = {}
        for user in node.users:
            if user.target is not operator.getitem or user not in self.producer or user.args[1] in parts:
                return None
            parts[user.args[1]] = user  # type: ignore[index]
        return parts


def _in_loop(unit: Node | Scope) -> bool:
    while not isinstance(unit, Node):
        unit = unit.items[0]
    return bool(loops_of(unit)) and not leaves_loop(unit)


def _references(tree: ast.expr) -> list[str]:
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id[:1] in "%$@"]


def _stored_in(unit: Node | Scope) -> list[str]:
    """The input that a unit writes: its name is needed until then."""
    place = unit.meta["store"] if isinstance(unit, Node) and unit.target is store else None
    return [f"%{place.name}"] if isinstance(place, Node) else []
