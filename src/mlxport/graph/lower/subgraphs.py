"""torch's operators of control flow: their graphs become functions of the port, which a helper calls.

A graph that an operator is given stands in the program as an attribute. It becomes a function of the file, named after
what the operator does with it; its node then stands for that name, so that the operator is lowered like any other.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.fx import Graph, GraphModule, Node

from mlxport.graph.lower.expr import to_ast
from mlxport.graph.lower.one_function import Gaps, lower_all
from mlxport.graph.lower.registry import UnsupportedOp

__all__ = ["function_sources"]

_LONGEST = 60  # characters of an expression that is written in place of its only use
_ROLES: Mapping[str, tuple[str, ...]] = {  # what an operator's graphs are called, in the order of its arguments
    "cond": ("when_true", "when_false"),
    "while_loop": ("goes_on", "turn"),
    "scan": ("step",),
    "map_impl": ("each",),
    "associative_scan": ("combine",),
}
_TAKEN = frozenset(["mx", "nn", "math", "self"])


def function_sources(graph: Graph) -> dict[str, str]:
    """Name and source of the function of each graph that the program's operators are given, inner ones first.

    Raises:
        MissingOps: Ops in them have no lowering.
    """
    found: dict[str, str] = {}
    _write(graph, found)
    return found


def _write(graph: Graph, found: dict[str, str]) -> None:
    gaps = Gaps()
    for node in graph.nodes:
        if not isinstance(node.target, HigherOrderOperator) or node.op != "call_function":
            continue
        with gaps.at(node):
            for role, given, names in _graphs(node):
                inner = _graph_module(given)
                _write(inner.graph, found)
                name, number = role, 1
                while name in found:
                    number += 1
                    name = f"{role}_{number}"
                found[name] = _source(inner.graph, name, names)
                given.meta["function"] = name
    gaps.check()


def _graphs(node: Node) -> Iterator[tuple[str, Node, list[str]]]:
    """For each graph that an operator is given: its role, its node, and names for its parameters."""
    kind = str(node.target)
    if kind not in _ROLES:
        raise UnsupportedOp("an operator on functions that has no lowering: write out what it computes")
    args: Any = node.args
    if any(not _is_array(item) for item in _flat(args)):
        raise UnsupportedOp("it is handed a number: hand it a tensor, torch.tensor(0) for 0")
    match kind:
        case "cond":
            names = _names(args[3])
            yield from ((role, given, names) for role, given in zip(_ROLES[kind], args[1:3], strict=True))
        case "while_loop":
            names = _names([*args[2], *args[3]])
            yield from ((role, given, names) for role, given in zip(_ROLES[kind], args[:2], strict=True))
        case "scan":
            states = ["state" if not index else f"state_{index + 1}" for index, _ in enumerate(args[1])]
            rows = [f"{name}_row" for name in _names(args[2])]
            yield _ROLES[kind][0], args[0], [*states, *rows, *_names(args[3])]
        case "map_impl":
            yield _ROLES[kind][0], args[0], [*(f"{name}_row" for name in _names(args[1])), *_names(args[2])]
        case "associative_scan":
            names = _names(args[1])
            pairs = [f"{name}_{side}" if len(names) > 1 else side for side in ("before", "after") for name in names]
            yield _ROLES[kind][0], args[0], [*pairs, *_names(args[2])]


def _flat(item: Any) -> Iterator[Any]:
    if isinstance(item, list | tuple):
        for part in item:
            yield from _flat(part)
    else:
        yield item


def _is_array(item: Any) -> bool:
    if not isinstance(item, Node):
        return False
    value = item.meta.get("val")
    return item.op == "get_attr" or isinstance(value, torch.Tensor | torch.SymInt | torch.SymBool)


def _graph_module(node: Node) -> GraphModule:
    owner = node.graph.owning_module
    assert owner is not None
    return getattr(owner, str(node.target))  # type: ignore[no-any-return]


def _names(operands: Sequence[Node]) -> list[str]:
    """Names after those of the operands, each once."""
    return _unique(re.sub(r"^(p|b|c)_", "", node.name) for node in operands)


def _unique(wishes: Any, taken: Sequence[str] = ()) -> list[str]:
    found: list[str] = []
    for wish in wishes:
        base = re.sub(r"_\d+$", "", wish) or "x"
        name, number = base, 1
        while name in found or name in taken or name in _TAKEN:
            number += 1
            name = f"{base}_{number}"
        found.append(name)
    return found


def _source(graph: Graph, name: str, parameters: Sequence[str]) -> str:
    """A function of a graph, from its placeholders to what it gives."""
    lowered = lower_all(graph.nodes)
    holders = [node for node in graph.nodes if node.op == "placeholder"]
    names = dict(zip((node.name for node in holders), _unique(parameters), strict=True))
    trees: dict[str, ast.expr] = {}
    lines: list[str] = []
    for node, result in lowered.items():
        if not node.users or isinstance(result, tuple):
            continue
        tree = _named(to_ast(result), names, trees)
        if len(node.users) == 1 and len(ast.unparse(tree)) <= _LONGEST:
            trees[node.name] = tree
            continue
        names[node.name] = _unique([node.name], list(names.values()))[0]
        lines.append(f"{names[node.name]} = {ast.unparse(tree)}")
    (output,) = graph.output_node().args
    items = list(output) if isinstance(output, list | tuple) else [output]
    texts = [ast.unparse(_named(_output(item), names, trees)) for item in items]
    result = f"({', '.join(texts)},)" if isinstance(output, list | tuple) else texts[0]
    body = "".join(f"    {line}\n" for line in [*lines, f"return {result}"])
    return f"def {name}({', '.join(names[node.name] for node in holders)}):\n{body}"


def _output(item: Any) -> ast.expr:
    return ast.Name("%" + item.name) if isinstance(item, Node) else to_ast(item)


def _named(tree: ast.expr, names: Mapping[str, str], trees: Mapping[str, ast.expr]) -> ast.expr:
    class Named(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:  # noqa: N802
            if not node.id.startswith("%"):
                return node
            written = trees.get(node.id[1:])
            return copy.deepcopy(written) if written is not None else ast.Name(names[node.id[1:]])

    return ast.fix_missing_locations(Named().visit(copy.deepcopy(tree)))  # type: ignore[no-any-return]
