"""Cut a flat graph into the calls of the original modules: the scopes that become the classes of the port."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.origin import module_path
from mlxport.graph.lower.layer_specs import layer, layer_itself
from mlxport.graph.lower.loop_ops import loops_of
from mlxport.graph.lower.lowering import is_read

__all__ = ["Scope", "build_tree", "nodes_in", "scopes"]

_ORDER = {"mask": 1, "state_mask": 2, "cache": 3, "state_cache": 4, "encoded": 4, "offset": 5}
_CONTAINERS = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)


@dataclass
class Scope:
    """One call of one module.

    Attributes:
        path: The module's path ("" for the root).
        key: Identifies the call: the same module called twice has two keys.
        items: Op nodes and calls of inner modules, in order.
        inputs: Values from outside that it uses, weights of other modules included.
        outputs: Its values that others use.
    """

    path: str
    key: str
    items: list[Node | Scope] = field(default_factory=list)
    inputs: list[Node] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)


def nodes_in(scope: Scope) -> Iterable[Node]:
    """All op nodes of a scope, inner calls included."""
    for item in scope.items:
        if isinstance(item, Scope):
            yield from nodes_in(item)
        else:
            yield item


def build_tree(captured: Captured, nodes: Sequence[Node], dissolved: Set[str] = frozenset()) -> Scope:
    """The calls of modules that ``nodes`` (in order) make up, helper modules dissolved into their callers.

    Args:
        captured: The program.
        nodes: Op nodes.
        dissolved: Keys of calls that are to be written in place.
    """
    kept = _kept(captured, nodes)
    root = Scope("", "")
    entries = [(node, _frames(node, kept, dissolved)) for node in nodes]
    root.items = _group(entries, 0)
    _splice_loops(root)
    _connect(captured, root)
    # An input may be used for its sizes only.
    root.inputs += [node for node in captured.inputs if node is not None and node not in root.inputs]
    _align(root)
    return root


_LOOP = "loop "  # keys of loops while ops are grouped: what stands in one stays together


def _splice_loops(scope: Scope) -> None:
    """Put what stands in a loop in its place among the items of the scope that has the loop."""
    items: list[Node | Scope] = []
    for item in scope.items:
        if isinstance(item, Scope):
            _splice_loops(item)
        items += item.items if isinstance(item, Scope) and item.key.startswith(_LOOP) else [item]
    scope.items = items


def scopes(scope: Scope) -> Iterable[Scope]:
    """All calls inside of a scope, inner ones first."""
    for item in scope.items:
        if isinstance(item, Scope):
            yield from scopes(item)
            yield item


def _align(root: Scope) -> None:
    """Let calls of one module that do the same give the same results, used or not."""
    calls: dict[str, list[Scope]] = {}
    for scope in scopes(root):
        calls.setdefault(scope.path, []).append(scope)
    for found in calls.values():
        if len(found) < 2:
            continue
        contents = [list(nodes_in(scope)) for scope in found]
        if any([n.target for n in nodes] != [n.target for n in contents[0]] for nodes in contents):
            continue
        wanted: set[int] = set()
        for nodes, scope in zip(contents, found, strict=True):
            position = {node: index for index, node in enumerate(nodes)}
            wanted |= {position[node] for node in scope.outputs}
        for nodes, scope in zip(contents, found, strict=True):
            scope.outputs = [nodes[index] for index in sorted(wanted)]


def _frames(node: Node, kept: Mapping[str, bool], dissolved: Set[str]) -> list[tuple[str, str]]:
    stack = node.meta.get("nn_module_stack") or {}
    frames: list[tuple[str, str]] = []
    loops = [*loops_of(node)]
    frames += _opened(loops, [key for _, key in loops if key not in stack])
    for key, (path, _) in stack.items():
        path = path.partition("@")[0]
        if path and kept.get(path, False) and key not in dissolved:
            frames.append((key, path))
        frames += _opened(loops, [key])
    return frames


def _opened(loops: list[tuple[str, str]], around: Sequence[str]) -> list[tuple[str, str]]:
    """The loops, taken from ``loops``, that stand in one of these calls."""
    found = []
    while loops and loops[0][1] in around:
        found.append((_LOOP + loops.pop(0)[0], ""))
    return found


def _kept(captured: Captured, nodes: Sequence[Node]) -> dict[str, bool]:
    """Which module paths become scopes of their own."""
    contents: dict[str, list[Node]] = {}
    calls: dict[str, set[str]] = {}
    for node in nodes:
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            path = path.partition("@")[0]
            contents.setdefault(path, []).append(node)
            calls.setdefault(path, set()).add(key)
    kept = {}
    for path, inside in contents.items():
        module = captured.modules.get(path)
        kept[path] = module is not None and not _dissolved(captured, path, module, inside, len(calls[path]))
    return kept


def _dissolved(captured: Captured, path: str, module: torch.nn.Module, inside: list[Node], calls: int) -> bool:
    if isinstance(module, _CONTAINERS) and type(module).forward in (c.forward for c in _CONTAINERS):
        return True
    own = any(name.startswith(path + ".") for name in _names_used(captured, inside))
    layers = {node.meta["layer"].path for node in inside if node.target in (layer, layer_itself)}
    if path in layers:
        return True
    if isinstance(module, torch.nn.RNNCellBase):
        return False  # a cell is called in every turn of a loop
    if type(module).__module__.startswith("torch.nn") and not any(True for _ in module.children()):
        return True
    inner = {module_path(node) for node in inside}
    if not own and not layers and inner <= {path}:
        return len(inside) <= 4 * calls  # an activation function: no weights, an expression
    return False


def _names_used(captured: Captured, nodes: Iterable[Node]) -> set[str]:
    return {captured.weights[item] for node in nodes for item in node.all_input_nodes if item in captured.weights}


Entry = tuple[Node, list[tuple[str, str]]]


def _group(entries: Sequence[Entry], depth: int) -> list[Node | Scope]:
    """ScopeParts of one level: nodes that belong to it, and the calls one level down, each in one piece."""
    units: list[tuple[str, str, list[Entry]]] = []
    where: dict[str, int] = {}
    split: set[str] = set()
    for node, frames in entries:
        key, path = frames[depth] if len(frames) > depth else ("", "")
        if key and units and units[-1][0] == key:
            units[-1][2].append((node, frames))
        elif key and key in where:
            split.add(key)
            units[where[key]][2].append((node, frames))
        else:
            if key:
                where[key] = len(units)
            units.append((key, path, [(node, frames)]))
    if split:
        loops = {key for key in split if key.startswith(_LOOP)}
        ordered = _ordered(units)
        if ordered is None and split > loops:
            split -= loops
            flat = [(node, _without(frames, depth, split)) for node, frames in entries]
            return _group(flat, depth)
        if ordered is None:
            raise AssertionError("a loop needs what follows from it")
        units = ordered
    items: list[Node | Scope] = []
    for key, path, members in units:
        if not key:
            items.extend(node for node, _ in members)
        else:
            items.append(Scope(path, key, _group(members, depth + 1)))
    return items


def _without(frames: list[tuple[str, str]], depth: int, split: set[str]) -> list[tuple[str, str]]:
    return frames[:depth] + frames[depth + 1 :] if len(frames) > depth and frames[depth][0] in split else frames


def _ordered(units: list[tuple[str, str, list[Entry]]]) -> list[tuple[str, str, list[Entry]]] | None:
    """Units sorted so that each comes after what it uses, as near to their order as that allows; None in a cycle."""
    home = {node: index for index, (_, _, members) in enumerate(units) for node, _ in members}
    needs = [
        {home[item] for node, _ in members for item in node.all_input_nodes if item in home} - {index}
        for index, (_, _, members) in enumerate(units)
    ]
    waiting = [len(inner) for inner in needs]
    users: list[list[int]] = [[] for _ in units]
    for index, inner in enumerate(needs):
        for source in inner:
            users[source].append(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    done: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        done.append(index)
        for user in users[index]:
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, user)
    return [units[index] for index in done] if len(done) == len(units) else None


def _connect(captured: Captured, scope: Scope) -> set[Node]:
    """Fill ``inputs`` and ``outputs`` of ``scope`` and what is inside; returns its nodes."""
    inside: set[Node] = set()
    for item in scope.items:
        inside |= _connect(captured, item) if isinstance(item, Scope) else {item}
    seen: dict[Node, None] = {}
    for node in nodes_in(scope):
        for item in _given(node):
            if item not in inside and not _owned(captured, scope, item) and not _is_size(item):
                seen.setdefault(item)
    scope.inputs = sorted(seen, key=_given_last)
    scope.outputs = [
        node
        for node in nodes_in(scope)
        if any(user not in inside and not _size_within(scope, user) for user in node.users)
    ]
    return inside


def _given(node: Node) -> list[Node]:
    """The nodes among the arguments of a node, in their order."""
    found: list[Node] = []

    def note(item: Node) -> Node:
        found.append(item)
        return item

    map_arg((node.args, node.kwargs), note)
    return found


def _size_within(scope: Scope, node: Node) -> bool:
    """Whether the node is a size that the scope itself takes: such nodes are no items of it."""
    return _is_size(node) and scope.key in (node.meta.get("nn_module_stack") or {})


def _given_last(node: Node) -> int:
    """Values first, in their order; then what all layers are handed alike, in the order of mlx-lm's models."""
    return _ORDER.get(node.meta.get("argument"), 0)


def _owned(captured: Captured, scope: Scope, node: Node) -> bool:
    name = captured.weights.get(node)
    return name is not None and (not scope.path or name.startswith(scope.path + "."))


def _is_size(node: Node) -> bool:
    """Sizes are taken from the shapes that a scope sees, not handed in."""
    value = node.meta.get("val")
    return isinstance(value, torch.SymInt | torch.SymBool | torch.SymFloat) and not is_read(node)
