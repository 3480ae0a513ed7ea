"""The statements of one scope: names from the original source, expressions that are used once written in place."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Mapping, Sequence

import sympy
import torch
from torch.fx import Node

from mlxport.graph.capture.origin import Statement
from mlxport.graph.capture.stores import store
from mlxport.graph.lower import loop_ops, symbolic_sizes
from mlxport.graph.write.for_loops import Loop, list_name, loops_in, turn_name
from mlxport.graph.write.naming import forward_names, names_of_parts, natural_name, result_name, snake
from mlxport.graph.write.paths import member
from mlxport.graph.write.placing import in_list, place, sequential
from mlxport.graph.write.reserved import is_reserved
from mlxport.graph.write.scope_parts import Body, Context, Reference, ScopeParts, Step, is_list
from mlxport.graph.write.simplify import tidy
from mlxport.graph.write.tree import Scope

__all__ = ["build_body"]


class _Builder:
    def __init__(self, context: Context, scope: Scope, result: ast.expr | None, names: Mapping[Node, str]) -> None:
        self.context, self.captured, self.scope, self.given = context, context.captured, scope, names
        self.units = ScopeParts(context, scope, result)
        self.names: dict[Node, str] = {}
        self.by_name: dict[str, Node] = {}
        self.bound: dict[str, Node | None] = {}
        self.reserved: set[str] = set()
        self.unpacked: set[Node] = set()
        self.references: dict[str, str] = {}
        self.body = Body(scope, {})
        self.open: list[Loop] = []
        self.held: set[str] = set()  # names of what open loops carry
        self.wanted = ""  # the one of them that may be given now
        self.loops = {loop.turn: loop for loop in loops_in(self.units)}

    # Sizes.
    def plan_sizes(self) -> None:
        """Decide where each size comes from: an argument's shape, a local value's, or an argument of its own."""
        self.size_names: dict[sympy.Expr, str] = {}
        providers: dict[sympy.Expr, tuple[int, Node, int]] = {}
        for node, index in [*((node, -1) for node in self.scope.inputs), *self.units.producer.items()]:
            if node not in self.captured.weights:
                _provide(providers, node, index)
        self.chosen: dict[Node, dict[int, sympy.Expr]] = {}
        self.size_inputs: list[sympy.Expr] = []
        for index, wanted in self.units.sizes():
            for part in _available(wanted, providers, index):
                if part in providers and providers[part][0] < index:
                    _, node, axis = providers[part]
                    self.chosen.setdefault(node, {})[axis] = part
                elif part not in self.size_inputs:
                    self.size_inputs.append(part)

    # Names.
    def fresh(self, base: str, index: int) -> str:
        """``base``, or ``base_2`` … while an older value of that name is still needed after unit ``index``."""
        base = re.sub(r"\W", "_", base) or "x"
        if base[0].isdigit():
            base = "x" + base
        number, name = 1, base
        while self._taken(name, index):
            number += 1
            name = f"{base}_{number}"
        return name

    def _taken(self, name: str, index: int) -> bool:
        if name in self.held and name != self.wanted:
            return True
        if is_reserved(name) or name in self.reserved:
            return True
        holder = self.bound.get(name)
        return holder is not None and self.last_use(holder) > index

    def last_use(self, node: Node) -> int:
        """Index of the last unit that refers to ``node`` once expressions are written in place.

        What a loop takes from outside of it is needed in its last turn, too.
        """
        last, made = -1, self.units.producer.get(node, -1)
        for index in self.units.uses.get(node.name, ()):
            while index < len(self.units) and index in self.placed:
                index = self.placed[index]
            ends = [loop.end for loop in self.loops.values() if made < loop.start < index <= loop.end]
            last = max(last, index, *ends)
        return last

    # Writing.
    def build(self) -> Body:
        self.plan_sizes()
        self.placed = place(self.captured, self.units, set(self.chosen))
        self._parameters()
        for node in self.scope.inputs:
            self._define_sizes(-1, node)
        trees: dict[int, ast.expr] = {}
        for index, unit in enumerate(self.units.all):
            if isinstance(unit, Node) and unit in self.unpacked:
                continue
            tree = self._resolve(self.units.trees[index], trees)
            if index in self.placed:
                trees[index] = tree
            else:
                self._write(index, unit, tree)
            for loop in [loop for loop in self.open if loop.end == index]:
                self._close(loop)
        self.body.result = self._resolve(self.units.result, trees)
        self.body.outputs = {node: self.names[node] for node in self.scope.outputs if node in self.names}
        self._simplify_return()
        return self.body

    def _simplify_return(self) -> None:
        """``x = f(y); return x`` is ``return f(y)``; a scope that gives nothing returns nothing."""
        steps, result = self.body.steps, self.body.result
        if isinstance(result, ast.Constant) and result.value is None and self.scope.path:
            self.body.result = None
        elif steps and not steps[-1].depth and _returns(result, steps[-1]) and not _calls_element(steps[-1].value):
            self.body.result = steps.pop().value

    def _parameters(self) -> None:
        names = forward_names(self.units.module)
        for node in self.scope.inputs:
            name = self._parameter(self.given.get(node, node.name), node)
            self._bind(name, node)
        order = {name: index for index, name in enumerate(names)}
        parameters = sorted(self.body.parameters.items(), key=lambda item: order.get(item[0], len(order)))
        self.body.parameters = dict(parameters)
        for path in self.units.foreign():
            name = self._parameter(snake(path), Reference(path))
            self.references[path] = name
            self.reserved.add(name)
        for wanted in self.size_inputs:
            name = self._parameter(symbolic_sizes.size_name(self.captured, wanted), wanted)
            self.size_names[wanted] = name
            self.reserved.add(name)

    def _parameter(self, wish: str, value: Node | sympy.Expr | Reference) -> str:
        name, number = self.fresh(wish, -1), 1
        while name in self.body.parameters:
            number += 1
            name = self.fresh(f"{wish}_{number}", -1)
        self.body.parameters[name] = value
        return name

    def _bind(self, name: str, node: Node) -> None:
        self.names[node] = name
        self.by_name[node.name] = node
        self.bound[name] = node

    def _write(self, index: int, unit: Node | Scope, tree: ast.expr) -> None:
        results = self.units.results(unit)
        if isinstance(unit, Node) and unit.target is store:
            self._put((self._store(unit),), tree)
            return
        if isinstance(unit, Node) and loop_ops.leaves_loop(unit):
            self._write_loop(index, unit, tree)
            return
        if len(results) == 1 and self._unpack(index, results[0], tree):
            return
        names: list[str] = []
        for position, node in enumerate(results):
            names.append(self._named(index, unit, node, position, names))
            self._bind(names[-1], node)
        needed = [node.name in self.units.uses or node in self.chosen for node in results]  # itself, or its sizes
        used = names if len(names) == 1 else [name if need else "_" for name, need in zip(names, needed, strict=True)]
        self._put(tuple(used), tree)
        for node in results:
            self._define_sizes(index, node)

    def _named(self, index: int, unit: Node | Scope, node: Node, position: int, others: list[str]) -> str:
        """A name for a value: that of what is carried, if it is handed on, and what was carried is not needed more.

        What is needed after a loop keeps clear of the names of what that carries.
        """
        wish = self._wish(index, unit, node, position)
        for loop in reversed(self.open):
            number = loop.number_of(node)
            if number is not None and loop.names[number] not in others:
                wish = loop.names[number]
        if all(self.last_use(node) <= loop.end for loop in self.open):
            self.wanted = wish
        name = self._new(wish, index, others)
        self.wanted = ""
        return name

    def _put(self, targets: tuple[str, ...], value: ast.expr) -> None:
        self.body.steps.append(Step(targets, value, len(self.open)))

    def _write_loop(self, index: int, unit: Node, tree: ast.expr) -> None:
        """What opens a loop, and what is done for it at the end of a turn."""
        if unit.target is loop_ops.steps:
            self._open(index, unit, tree)
            return
        loop = self.loops[unit.args[0] if unit.target is loop_ops.carried else unit.args[1]]  # type: ignore[index]
        if unit.target is loop_ops.carried:
            self._bind(loop.names[unit.args[1]], unit)  # type: ignore[index]
        elif unit.target is loop_ops.collected:
            self._put((), ast.Call(ast.Attribute(ast.Name(self.names[unit]), "append"), [tree], []))
        elif unit.target is loop_ops.left:
            if not isinstance(tree, ast.Name) or tree.id in self.held:
                name = self._new(self._wish(index, unit, unit, 0), index, [])
                self._put((name,), tree)
                tree = ast.Name(name)
            self._bind(tree.id, unit)
        else:
            name = loop.names[unit.args[2]]  # type: ignore[index]
            if not (isinstance(tree, ast.Name) and tree.id == name):
                loop.moved.append((name, tree))
            self._bind(name, unit)

    def _open(self, index: int, unit: Node, tree: ast.expr) -> None:
        loop = self.loops[unit]
        over, *starts = tree.elts  # type: ignore[attr-defined]
        handed = loop.handed()
        for number, start in enumerate(starts):
            node = handed[number].args[0]
            given = unit.args[1 + number]
            wish = self._wish_of(node) if isinstance(node, Node) else "state"
            free = isinstance(start, ast.Name) and isinstance(given, Node) and self.last_use(given) <= index
            later = [
                name.id for other in starts[number + 1 :] for name in ast.walk(other) if isinstance(name, ast.Name)
            ]
            keep = free and isinstance(start, ast.Name) and start.id == wish and wish not in later
            name = wish if keep else self._new(wish, index, [*loop.names.values(), *later])
            loop.names[number] = name
            if not (isinstance(start, ast.Name) and start.id == name):
                self._put((name,), start)
            self.bound[name] = unit
            self.held.add(name)
        for node in loop.lists():
            value = node.args[0]
            wish = list_name(node) or f"{self._wish_of(value)}s"  # type: ignore[arg-type]
            name = self.fresh(wish, index)
            self._bind(name, node)
            self._put((name,), ast.List([]))
        used = unit in self.chosen or unit.name in self.units.uses
        name = self.fresh(turn_name(unit), index) if used else "_"
        self.body.steps.append(Step((name,), over, len(self.open), loop=True))
        self.open.append(loop)
        self._bind(name, unit)
        if used:
            self.reserved.add(name)
        self._define_sizes(index, unit)

    def _wish_of(self, node: Node) -> str:
        """What a value of a turn is to be called."""
        index = self.units.producer.get(node)
        if index is None:
            return result_name(node)
        if node.target is loop_ops.carried:
            return f"last_{self._wish_of(self.loops[node.args[0]].handed()[node.args[1]].args[0])}"  # type: ignore[index,arg-type]
        unit = self.units.all[index]
        return self._wish(index, unit, node, self.units.results(unit).index(node))

    def _carried_as(self, node: Node) -> Node | None:
        """What a value becomes that only serves as the start of what a loop carries."""
        users = [user for user in node.users if user.target is loop_ops.steps]
        if len(users) != 1 or len(self.units.uses.get(node.name, ())) != 1 or users[0] not in self.loops:
            return None
        number = users[0].args.index(node) - 1
        value = self.loops[users[0]].handed()[number].args[0]
        return value if isinstance(value, Node) and value.target is not loop_ops.carried else None

    def _close(self, loop: Loop) -> None:
        """End a turn: what is handed on under another name gets that of what is carried."""
        if loop.moved:
            values = [value for _, value in loop.moved]
            self._put(tuple(name for name, _ in loop.moved), values[0] if len(values) == 1 else ast.Tuple(values))
        self.open.remove(loop)
        self.reserved.discard(self.names[loop.turn])
        self.held.difference_update(loop.names.values())

    def _new(self, wish: str, index: int, others: list[str]) -> str:
        name, number = self.fresh(wish, index), 1
        while name in others:
            number += 1
            name = self.fresh(f"{wish}_{number}", index)
        return name

    def _store(self, unit: Node) -> str:
        """The text of what a value is written to."""
        place_ = unit.meta["store"]
        if isinstance(place_, str):
            return ast.unparse(ast.fix_missing_locations(self.member(place_)))
        return self.names[place_] + ("[:]" if place_.meta["val"].ndim else "[...]")

    def _unpack(self, index: int, node: Node, tree: ast.expr) -> bool:
        """``a, b = f(x)`` for an op with several results whose parts all have names of their own."""
        parts = self.units.parts(node) if is_list(node) else None
        if not parts:
            return False
        names: list[str] = []
        for position in range(len(node.meta["val"])):
            part = parts.get(position)
            if part is None:
                names.append("_")
                continue
            where = self.units.producer[part]
            self.placed.pop(where, None)
            names.append(self._new(self._wish(where, part, part, 0), index, names))
            self._bind(names[-1], part)
            self.unpacked.add(part)
        self._put(tuple(names), tree)
        for part in parts.values():
            self._define_sizes(index, part)
        return True

    def _wish(self, index: int, unit: Node | Scope, node: Node, position: int) -> str:
        if "variable" in node.meta:
            return str(node.meta["variable"])
        units = self.units
        becomes = self._carried_as(node)
        if becomes is not None:
            return self._wish_of(becomes)
        own = units.statements[index]
        results = units.results(unit)
        if own is not None and own.names and not self._is_round(unit, own):
            same = units.of_statement[own]
            if len(own.names) == 1 and len(results) == 1:
                if index == same[-1] or units.leaves(node, own):
                    return own.names[0]
            elif len(own.names) > 1:
                wish = self._of_several(units.leaving(own), node, own)
                if wish is not None:
                    return wish
                if isinstance(unit, Node) and len(results) == len(own.names) and own.names[position] != "_":
                    return own.names[position]
        if len(results) > 1:
            return natural_name(self.captured, node)
        if sequential(self.captured, unit):
            return "x"
        if isinstance(unit, Node):
            return result_name(node)
        if in_list(unit):  # an unnamed round of a loop hands on what it was handed
            child = self.context.bodies[unit.key]
            return next((name for name, item in child.parameters.items() if isinstance(item, Node)), "x")
        return snake(unit.path)

    @staticmethod
    def _of_several(leaving: Sequence[Node], node: Node, own: Statement) -> str | None:
        """Which of the names that a statement assigns is that of a value, where it is certain."""
        if node not in leaving or len(leaving) != len(own.names):
            return None
        told = names_of_parts(leaving, own.names, in_order=len(own.computed) == len(own.names))
        wish = told[leaving.index(node)]
        return None if wish == "_" else wish

    def _is_round(self, unit: Node | Scope, own: Statement) -> bool:
        """Whether the unit is one of several calls of a list's elements in one statement: all give one variable."""
        if not isinstance(unit, Scope) or not in_list(unit):
            return False
        home = unit.path.rpartition(".")[0]
        same = [self.units.all[index] for index in self.units.of_statement[own]]
        return sum(isinstance(it, Scope) and in_list(it) and it.path.rpartition(".")[0] == home for it in same) > 1

    def _define_sizes(self, index: int, node: Node) -> None:
        """Write ``B, L, _ = x.shape`` for the sizes that are taken from a value that is now known."""
        axes = self.chosen.get(node)
        if not axes:
            return
        variable = ast.Name(self.names[node])
        if -1 in axes:
            self.size_names[axes[-1]] = self.names[node]
            self.reserved.add(self.names[node])
            return
        for size in axes.values():
            name = self.fresh(symbolic_sizes.size_name(self.captured, size), index)
            self.size_names[size] = name
            self.reserved.add(name)
        shape: ast.expr = ast.Attribute(variable, "shape")
        if len(axes) == 1:
            ((axis, size),) = axes.items()
            self._put((self.size_names[size],), ast.Subscript(shape, ast.Constant(axis)))
        else:
            ndim = node.meta["val"].ndim
            names = tuple(self.size_names[axes[axis]] if axis in axes else "_" for axis in range(ndim))
            self._put(names, shape)

    def _resolve(self, tree: ast.expr, trees: Mapping[int, ast.expr]) -> ast.expr:
        builder = self

        class Resolver(ast.NodeTransformer):
            def visit_Name(self, node: ast.Name) -> ast.expr:  # noqa: N802
                if node.id[:1] == "%":
                    return builder.value(node.id[1:], trees)
                if node.id[:1] == "$":
                    return symbolic_sizes.written(symbolic_sizes.expression(node.id), builder.size_names)
                if node.id[:1] == "@":
                    return builder.member(node.id[1:])
                return node

        return tidy(Resolver().visit(copy.deepcopy(tree)))

    def value(self, name: str, trees: Mapping[int, ast.expr]) -> ast.expr:
        """The variable, expression or weight that a graph name stands for."""
        node = self.units.by_name.get(name) or self.by_name.get(name)
        if node is not None:
            index = self.units.producer.get(node, -1)
            if node not in self.names and index in trees:
                return trees[index]
            return ast.Name(self.names[node])
        weight = self.context.weights.get(name)
        if weight is None:
            raise KeyError(f"{name} is not known in {self.scope.path or 'the root'}")
        return self.member(self.captured.weights[weight])

    def member(self, full: str) -> ast.expr:
        """``self.layers[0].weight`` for a path of the module tree, or the argument that hands a module in."""
        if full in self.references:
            return ast.Name(self.references[full])
        self.body.used.setdefault(full)
        return member(self.context.paths.relative(full, self.scope.path))


def _provide(providers: dict[sympy.Expr, tuple[int, Node, int]], node: Node, index: int) -> None:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        for axis, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt):
                providers.setdefault(size.node.expr, (index, node, axis))
    elif isinstance(value, torch.SymInt | torch.SymFloat):
        providers.setdefault(value.node.expr, (index, node, -1))


def _available(
    wanted: sympy.Expr, providers: Mapping[sympy.Expr, tuple[int, Node, int]], before: int
) -> list[sympy.Expr]:
    """The sizes, known as they are before a unit, that ``wanted`` is computed from, each once.

    Sizes share parts: each is looked at once, as the paths to it are exponentially many in the depth.
    """
    found: dict[sympy.Expr, None] = {}
    seen: set[sympy.Expr] = set()
    left = [wanted]
    while left:
        size = left.pop()
        if size in seen or size.is_number:
            continue
        seen.add(size)
        if (size in providers and providers[size][0] < before) or not size.args:
            found.setdefault(size)
        else:
            left.extend(reversed(size.args))
    return list(found)


def _returns(result: ast.expr | None, step: Step) -> bool:
    """Whether what is returned is just what a statement assigns."""
    names = result.elts if isinstance(result, ast.Tuple) else [result]
    return tuple(name.id if isinstance(name, ast.Name) else "" for name in names) == step.targets


def _calls_element(tree: ast.expr) -> bool:
    """Whether the expression calls an element of a list: the last round of a loop stays with the others."""
    return isinstance(tree, ast.Call) and isinstance(tree.func, ast.Subscript)


def build_body(context: Context, scope: Scope, names: Mapping[Node, str], *, result: ast.expr | None = None) -> Body:
    """The body of ``scope``, whose inner calls are in ``context``; ``names``: what values are called outside."""
    return _Builder(context, scope, result, names).build()
