"""Names of the arguments of each scope, outermost scope first: what the caller and the original forward call them."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Mapping, Sequence

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.origin import Statement, call_arguments, module_path, statement
from mlxport.graph.lower.cache_ops import attend
from mlxport.graph.lower.fused_ops import attention
from mlxport.graph.lower.loop_ops import becomes, carried
from mlxport.graph.lower.traits import View, traits_of
from mlxport.graph.write.tree import Scope, nodes_in

__all__ = ["argument_names", "forward_names", "names_of_parts", "natural_name", "result_name", "snake"]


def forward_names(module: torch.nn.Module | None) -> list[str]:
    """Parameters of a module's forward, those that catch the rest left out."""
    if module is None:
        return []
    if isinstance(module, torch.nn.LSTMCell):
        return ["input", "h", "c"]  # the two that ``hx`` consists of
    parameters = inspect.signature(module.forward).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def natural_name(captured: Captured, node: Node) -> str:
    """What the module that computes a value calls it."""
    if "variable" in node.meta:
        return str(node.meta["variable"])
    module = captured.modules.get(module_path(node))
    if isinstance(module, torch.nn.RNNCellBase):
        return "c" if node.target is operator.getitem and node.args[1] == 1 else "h"
    made = statement(node, module)
    return made.names[0] if made is not None and len(made.names) == 1 else result_name(node)


def names_of_parts(parts: Sequence[Node], names: Sequence[str], *, in_order: bool) -> list[str | None]:
    """Which of the ``names`` that a statement assigns is that of which value that leaves it; None for what is unknown.

    What attention takes a value as says it, or the order, if values are computed ``in_order`` of their names.
    """
    known = [_told(node, names) or _named_by_role(node, names) for node in parts]
    known = [name if known.count(name) == 1 else None for name in known]
    if not in_order:
        return known
    rest = iter([name for name in names if name not in known])
    return [name or next(rest) for name in known]


def _told(node: Node, names: Sequence[str]) -> str | None:
    name = node.meta.get("variable")
    return name if name in names else None


def _named_by_role(node: Node, names: Sequence[str]) -> str | None:
    """The one name that says what an attention takes the value as: its query, key or value."""
    roles = {
        role
        for user in node.users
        if user.target in (attend, attention)
        for role, given in zip(("query", "key", "value"), user.args, strict=False)
        if given is node
    }
    found = [name for name in names if any(role in name.split("_") for role in roles)]
    return found[0] if len(roles) == len(found) == 1 else None


def result_name(node: Node) -> str:
    """A name for what an op gives, for want of a better one."""
    if "variable" in node.meta:
        return str(node.meta["variable"])
    schema = getattr(node.target, "_schema", None)
    base = schema.name.rpartition("::")[2] if schema is not None else getattr(node.target, "__name__", "x")
    if base == "layer":
        base = snake(node.meta["layer"].path)
    base = base.strip("_")
    if base in _BETTER:
        return _BETTER[base]
    known = traits_of(node)
    return "x" if known.cast or known.shaped or known.view is View.REORDERED else base


# Names of ops that are Python's, too.
_BETTER = {
    "getitem": "part", "slice": "part", "select": "part", "sum": "total", "max": "largest", "min": "smallest",
    "any": "some", "all": "every", "abs": "size", "pow": "power", "round": "rounded", "sorted": "ordered",
    "attend": "output", "latent_attention": "output", "shares": "weights", "swiglu": "gated", "recall": "before",
    "rows_of_tokens": "x",
}  # fmt: skip


def snake(path: str) -> str:
    """The last name of a path that is no number, in lower case."""
    parts = [part for part in path.split(".") if not part.isdigit()]
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", parts[-1] if parts else "x").lower()


def argument_names(captured: Captured, root: Scope, given: Mapping[Node, str]) -> dict[str, dict[Node, str]]:
    """Key of each scope to the names of its inputs; ``given`` has the names of the root's."""
    found: dict[str, dict[Node, str]] = {}
    first: dict[str, Scope] = {}
    parts: set[Node] = set()

    def visit(scope: Scope, mine: Mapping[Node, str]) -> None:
        module = captured.modules.get(scope.path)
        calls = [item for item in scope.items if isinstance(item, Scope)]
        parts.update(node for item in calls if len(item.outputs) > 1 for node in item.outputs)
        for item in calls:
            before = first.setdefault(item.path, item)
            if before is not item and len(before.inputs) == len(item.inputs):  # a second call of a module
                names = dict(zip(item.inputs, found[before.key].values(), strict=True))
            else:
                calls_it = next((statement(node, module) for node in nodes_in(item)), None)
                visible = {n: _visible(captured, n, module, mine, calls_it) for n in item.inputs}
                names = _assigned(captured, item, parts, visible, _actual(captured, item, module))
            found[item.key] = names
            visit(item, names)

    visit(root, given)
    return found


def _visible(
    captured: Captured,
    node: Node,
    module: torch.nn.Module | None,
    mine: Mapping[Node, str],
    calls_it: Statement | None,
) -> str:
    """What the caller calls a value: what it computes of it in the statement that has the call has no name."""
    if node in mine:
        return mine[node]
    if "variable" in node.meta:
        return str(node.meta["variable"])
    if node in captured.weights:
        return captured.weights[node].rpartition(".")[2]
    if node.target is carried:
        node, calls_it = becomes(node), None
    made = statement(node, module)
    if made is not None and made == calls_it and not made.names[1:]:
        return result_name(node)
    return made.names[0] if made is not None and len(made.names) == 1 else result_name(node)


def _actual(captured: Captured, scope: Scope, caller: torch.nn.Module | None) -> dict[str, str]:
    """Variable of the caller to the parameter of the module that it is given as."""
    inside = next(iter(nodes_in(scope)), None)
    names = tuple(forward_names(captured.modules.get(scope.path)))
    return {} if inside is None else call_arguments(inside, caller, scope.path.rpartition(".")[2], names)


def _assigned(
    captured: Captured, scope: Scope, parts: set[Node], visible: Mapping[Node, str], actual: Mapping[str, str]
) -> dict[Node, str]:
    """The forward's names: as the source of the call has it, the caller's where it is one, free ones in order.

    Values that a module gives together, ``parts``, keep the names that they have there.
    """
    module = captured.modules.get(scope.path)
    names = forward_names(module)
    if isinstance(module, torch.nn.RNNCellBase) and len(scope.inputs) == len(names):
        return dict(zip(scope.inputs, names, strict=True))
    result: dict[Node, str] = {}
    told = {node: node.meta["argument"] for node in scope.inputs if "argument" in node.meta}
    reserved = {actual[visible[node]] for node in scope.inputs if visible[node] in actual}
    for index, node in enumerate(scope.inputs):
        if node in told:
            result[node] = told[node]
            continue
        wish = visible[node]
        if actual.get(wish, wish) not in result.values() and wish in actual:
            result[node] = actual[wish]
            continue
        if node in parts:
            result[node] = natural_name(captured, node)
            continue
        taken = set(result.values())
        later = {visible[other] for other in scope.inputs[index + 1 :] if visible[other] not in actual} | reserved
        if wish not in names and node not in captured.weights:
            free = [name for name in names if name not in taken and name not in later]
            if not index and names and names[0] not in taken | reserved:
                wish = names[0]
            elif free:
                wish = free[0]
        result[node] = wish
    return result
