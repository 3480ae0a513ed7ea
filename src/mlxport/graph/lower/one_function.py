"""A graph as one flat Python function, a line per op: for folded constants and the conformance tests."""

from __future__ import annotations

import ast
import builtins
import copy
import dis
import inspect
import math
import operator
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from torch.fx import Graph, Node

from mlxport.errors import UsageError
from mlxport.graph.lower.expr import Expr, to_ast
from mlxport.graph.lower.lowering import Missing, lower_node
from mlxport.graph.lower.registry import HELPERS, REGISTERED, UnsupportedOp, registered
from mlxport.graph.lower.traits import traits_of

_KNOWN = ("mx", "nn", "math")  # what a port imports

__all__ = ["Gaps", "MissingOps", "compile_source", "flat_source", "helper_sources", "lower_all"]


class MissingOps(Exception):
    """Ops without a lowering, all at once."""

    def __init__(self, missing: Sequence[Missing]) -> None:
        super().__init__(", ".join(f"{item.key} ({item.reason})" if item.reason else item.key for item in missing))
        self.missing = tuple(missing)


class Gaps:
    """Ops without a lowering, collected so that they are named all at once; true if there are some."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Missing] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    @contextmanager
    def at(self, node: Node) -> Iterator[None]:
        """Lower ``node`` inside: that there is no way to is noted."""
        try:
            yield
        except UnsupportedOp as error:
            key = (str(node.target), str(error))
            self._found.setdefault(key, Missing(*key)).nodes.append(node)

    def check(self) -> None:
        """Raise ``MissingOps`` with what was noted."""
        if self._found:
            raise MissingOps(list(self._found.values()))


def lower_all(nodes: Iterable[Node]) -> dict[Node, Any]:
    """The expression of every op node.

    Raises:
        MissingOps: with every op that has no lowering.
    """
    lowered: dict[Node, Any] = {}
    gaps = Gaps()
    nodes = list(nodes)
    dead = _dead(nodes)
    for node in nodes:
        if node.op != "call_function" or node in dead:
            continue
        with gaps.at(node):
            lowered[node] = lower_node(node)
    gaps.check()
    return lowered


def _dead(nodes: Sequence[Node]) -> set[Node]:
    """Assertions and what only they use."""
    dead: set[Node] = set()
    for node in reversed(nodes):
        if is_assertion(node) or (node.op == "call_function" and node.users and dead.issuperset(node.users)):
            dead.add(node)
    return dead


def is_assertion(node: Node) -> bool:
    """Whether the node only checks something that torch.export assumed."""
    return traits_of(node).check


def flat_source(graph: Graph, function: str = "forward") -> str:
    """Source of a function from the graph's placeholders, in order, to its outputs (a flat tuple).

    Raises:
        MissingOps: with every op that has no lowering.
    """
    lowered = lower_all(graph.nodes)
    lines = []
    for node in graph.nodes:
        if node not in lowered or (not node.users and node.target is not operator.getitem):
            continue
        lines.append(f"{variable(node.name)} = {text(lowered[node])}")
    parameters = ", ".join(variable(node.name) for node in graph.nodes if node.op == "placeholder")
    (output,) = next(node for node in graph.nodes if node.op == "output").args
    items = output if isinstance(output, tuple | list) else (output,)
    result = "".join(f"{text(_output(item))}, " for item in items)
    body = "\n".join([*lines, f"return ({result})"])
    return f"def {function}({parameters}):\n" + textwrap.indent(body, "    ") + "\n"


def _output(item: Any) -> Any:
    if isinstance(item, Node):
        return Expr(ast.Name(variable(item.name)), None)
    return type(item)(map(_output, item)) if isinstance(item, tuple | list) else item


class _Named(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.Name:  # noqa: N802
        return ast.Name(variable(node.id[1:])) if node.id.startswith("%") else node


def variable(name: str) -> str:
    """The name of a graph variable, which must not hide a helper or a module."""
    return name + "_" if name in HELPERS or name in ("mx", "nn", "math") else name


def text(item: Any) -> str:
    """``item`` as source, graph variables under their names."""
    return ast.unparse(_Named().visit(copy.deepcopy(to_ast(item))))


def helper_sources(names: Iterable[str]) -> dict[str, str]:
    """Sources of the named helpers and of the helpers that they call, callees first."""
    found: dict[str, str] = {}
    visited: set[str] = set()

    def visit(function: Callable[..., Any]) -> None:
        if function.__name__ in visited:
            return
        visited.add(function.__name__)
        code = inspect.unwrap(function)
        for part in filter(inspect.isfunction, vars(code).values()) if inspect.isclass(code) else (code,):
            for called in _names(part.__code__):
                inner: Any = part.__globals__.get(called)
                own = inspect.isclass(inner) and inner.__module__ == part.__module__
                if inspect.isfunction(inner) and inner.__module__.startswith("mlx_lm."):
                    continue  # a language model's file imports it
                if inspect.isfunction(inner) or own:
                    visit(inner)
                elif called not in _KNOWN and not hasattr(builtins, called):
                    raise _unknown(function, called)
        lines = textwrap.dedent(inspect.getsource(code)).splitlines(keepends=True)
        while not lines[0].startswith(("def ", "class ", "@mx.")):  # decorators that are none of the port's
            lines.pop(0)
        found[function.__name__] = "".join(lines)

    for name in names:
        visit(HELPERS[name])
    return found


def _unknown(function: Callable[..., Any], name: str) -> UsageError:
    """The error for a global that a port does not have."""
    keys = [key for key, own in REGISTERED.items() if own is function]
    what = registered(keys[0]) if keys else f"{function.__name__}, which a registered function calls,"
    return UsageError(
        f"{what} uses {name}, which the port does not have",
        hint="its source goes into the port: let it use mx, nn, math and functions of its own file only",
    )


def _names(code: Any) -> list[str]:
    """Global names that the code loads, each once, in its order: the port's source is the same every time."""
    names = [step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"]
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            names += _names(constant)
    return list(dict.fromkeys(names))


def used_helpers(source: str) -> list[str]:
    """Helpers that the source calls, in the order of the calls."""
    tree = ast.parse(source)
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in HELPERS]
    return list(dict.fromkeys(names))


def compile_source(
    source: str, function: str = "forward", constants: Mapping[str, mx.array] | None = None
) -> Callable[..., Any]:
    """Execute flat source with its helpers and give its function; ``constants``: of the graph's ``get_attr`` nodes."""
    parts = [*helper_sources(used_helpers(source)).values(), source]
    namespace: dict[str, Any] = {"mx": mx, "nn": nn, "math": math}
    namespace.update({variable(name): array for name, array in (constants or {}).items()})
    exec(compile("\n\n".join(parts), "<mlxport>", "exec"), namespace)
    result: Callable[..., Any] = namespace[function]
    return result
