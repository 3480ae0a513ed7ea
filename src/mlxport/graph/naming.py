"""Names of the arguments of each scope, outermost scope first: what the caller and the original forward call them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

import torch
from torch.fx import Node

from mlxport.graph.capture import Captured
from mlxport.graph.origin import statement
from mlxport.graph.tree import Scope

__all__ = ["argument_names", "forward_names"]


def forward_names(module: torch.nn.Module | None) -> list[str]:
    """Parameters of a module's forward, those that catch the rest left out."""
    if module is None:
        return []
    parameters = inspect.signature(module.forward).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def argument_names(captured: Captured, root: Scope, given: Mapping[Node, str]) -> dict[str, dict[Node, str]]:
    """Key of each scope to the names of its inputs; ``given`` has the names of the root's."""
    found: dict[str, dict[Node, str]] = {}

    def visit(scope: Scope, mine: Mapping[Node, str]) -> None:
        module = captured.modules.get(scope.path)
        for item in scope.items:
            if isinstance(item, Scope):
                visible = {node: _visible(captured, node, module, mine) for node in item.inputs}
                found[item.key] = _assigned(captured, item, visible)
                visit(item, found[item.key])

    visit(root, given)
    return found


def _visible(captured: Captured, node: Node, module: torch.nn.Module | None, mine: Mapping[Node, str]) -> str:
    """What the caller calls a value."""
    if node in mine:
        return mine[node]
    if node in captured.weights:
        return captured.weights[node].rpartition(".")[2]
    made = statement(node, module)
    return made.names[0] if made is not None and len(made.names) == 1 else re.sub(r"_\d+$", "", node.name)


def _assigned(captured: Captured, scope: Scope, visible: Mapping[Node, str]) -> dict[Node, str]:
    """The forward's names: the caller's where it is one of them, the first for the first, free ones in order."""
    names = forward_names(captured.modules.get(scope.path))
    result: dict[Node, str] = {}
    for index, node in enumerate(scope.inputs):
        wish = visible[node]
        taken = set(result.values())
        later = {visible[other] for other in scope.inputs[index + 1 :]}
        if wish not in names and node not in captured.weights:
            free = [name for name in names if name not in taken and name not in later]
            if not index and names and names[0] not in taken:
                wish = names[0]
            elif free:
                wish = free[0]
        result[node] = wish
    return result
