"""Members of a ModuleList that compute the same formula side by side, each with weights of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from mlxport.graph.capture.captured import Captured
from mlxport.graph.rewrite.graph_queries import ancestors, kind, ndim, value

__all__ = ["Branches", "find_branches"]


@dataclass(frozen=True)
class Branches:
    """The members of one list.

    Attributes:
        path: Path of the list.
        nodes: The ops of each member, in corresponding order.
        inputs: What each member takes from outside.
        outputs: What each gives.
    """

    path: str
    nodes: tuple[tuple[Node, ...], ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]


def find_branches(captured: Captured) -> Iterator[Branches | tuple[str, str]]:
    """Lists whose members run side by side; of those that differ from one another, the path with what is different."""
    lists = [path for path, module in captured.modules.items() if isinstance(module, torch.nn.ModuleList)]
    for path in lists:
        members = _members(captured, path)
        if len(members) < 2 or len(members) != len(captured.modules[path]):  # type: ignore[arg-type]
            continue
        ends = [_ends(captured, nodes) for nodes in members]
        if any(end is None for end in ends):
            continue
        inputs, outputs = zip(*(end for end in ends if end is not None), strict=True)
        if not {*inputs, *ancestors(inputs)}.isdisjoint(outputs):
            continue  # one after the other
        forms = [_form(captured, f"{path}.{index}.", nodes, inputs[index]) for index, nodes in enumerate(members)]
        if any(form != forms[0] for form in forms):
            yield path, "its members compute different things"
        else:
            yield Branches(path, tuple(map(tuple, members)), inputs, outputs)


def _members(captured: Captured, path: str) -> list[list[Node]]:
    found: dict[int, list[Node]] = {}
    for node in captured.graph.nodes:
        for inner, _ in (node.meta.get("nn_module_stack") or {}).values():
            head, _, rest = inner.partition("@")[0].rpartition(path + ".")
            number = rest.partition(".")[0]
            if path and not head and rest and number.isdigit() and node.op == "call_function":
                found.setdefault(int(number), []).append(node)
                break
    return [found[index] for index in sorted(found)] if sorted(found) == list(range(len(found))) else []


def _ends(captured: Captured, nodes: list[Node]) -> tuple[Node, Node] | None:
    """The one tensor that goes in and the one that comes out."""
    inside = set(nodes)
    given = {item for node in nodes for item in node.all_input_nodes if item not in inside}
    given = {item for item in given if item not in captured.weights and isinstance(value(item), torch.Tensor)}
    leaving = [node for node in nodes if any(user not in inside for user in node.users)]
    return (given.pop(), leaving[0]) if len(given) == 1 == len(leaving) and ndim(leaving[0]) > 0 else None


def _form(captured: Captured, prefix: str, nodes: list[Node], given: Node) -> list[Any]:
    """The ops with weights by their names within the member, and other values by where they come from."""
    order = {node: index for index, node in enumerate(nodes)}

    def spelled(node: Node) -> Any:
        name = captured.weights.get(node, "")
        if name.startswith(prefix):
            return "weight", name.removeprefix(prefix), tuple(value(node).shape), value(node).dtype
        return ("input",) if node is given else ("own", order[node]) if node in order else ("other", node.name)

    def plain(item: Any) -> Any:
        return map_arg(item, lambda node: _Spelled(spelled(node)))  # type: ignore[arg-type,return-value]

    return [(kind(node), repr(plain(node.args)), repr(plain(node.kwargs))) for node in nodes]


class _Spelled:
    def __init__(self, text: Any) -> None:
        self.text = text

    def __repr__(self) -> str:
        return repr(self.text)
