"""Other spellings of what a loop does, as torch.export leaves them: one list for what grows turn by turn, and so on."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from mlxport.graph.capture.time_loops.equal_turns import element_name, innermost_loop

__all__ = ["alike", "plain"]


def plain(graph: Graph) -> None:
    """Write ``select`` for the parts of ``unbind``, one ``cat`` and one ``stack`` for what grows turn by turn."""
    _sizes_once(graph)
    _without_copies(graph)
    for node in [*graph.nodes]:
        if str(node.target) == "aten.unbind.int" and all(user.target is operator.getitem for user in node.users):
            for user in [*node.users]:
                user.args = (node.args[0], node.args[1] if len(node.args) > 1 else 0, user.args[1])
                user.target = torch.ops.aten.select.int
                for part in _one_a_loop(graph, user):
                    part.meta |= {"variable": element_name(next(iter(part.users), part)), "element": True}
        elif node.target is torch.ops.aten.select.int and node.users:
            _one_a_loop(graph, node)
        elif str(node.target) == "aten.split.Tensor" and node.args[1] == 1 and all(
            user.target is operator.getitem for user in node.users
        ):  # fmt: skip
            for user in [*node.users]:
                index: Any = user.args[1]
                user.args = (node.args[0], node.args[2] if len(node.args) > 2 else 0, index, index + 1)
                user.target = torch.ops.aten.slice.Tensor
    _merge_growing(graph)
    _merge_filled(graph)
    graph.eliminate_dead_code()


def _one_a_loop(graph: Graph, node: Node) -> list[Node]:
    """Take the same part once for each loop of the source that uses it; the nodes of that part."""
    made = [node]
    loops: dict[Any, list[Node]] = {}
    for user in node.users:
        loops.setdefault(innermost_loop(user), []).append(user)
    if len(loops) > 1 and None in loops:  # whoever uses it outside of loops shares it with one of them
        outside = loops.pop(None)
        next(iter(loops.values())).extend(outside)
    for users in [*loops.values()][1:]:
        with graph.inserting_after(node):
            other = graph.node_copy(node)
        other.meta = dict(node.meta)
        for user in users:
            user.replace_input_with(node, other)
        made.append(other)
    return made


def _without_copies(graph: Graph) -> None:
    """Take out slices of everything, and copies over everything, as assignments to parts leave them."""
    for node in [*graph.nodes]:
        place = {"aten.slice.Tensor": 0, "aten.slice_scatter.default": 1, "aten.copy.default": 1}.get(str(node.target))
        if place is None:
            continue
        source = node.args[place]
        whole = str(node.target) == "aten.copy.default" or _is_whole(node, place + 1)
        if whole and isinstance(source, Node) and alike(source.meta.get("val"), node.meta.get("val")):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _is_whole(node: Node, first: int) -> bool:
    """Whether a slice, given by the arguments from ``first`` on, takes everything: it has no step."""
    return len(node.args) <= first + 3 or node.args[first + 3] == 1


def _sizes_once(graph: Graph) -> None:
    """Compute each size once, where what it is computed from is known."""
    known: dict[Any, Node] = {}
    there: set[Node] = set()
    for node in [*graph.nodes]:
        if getattr(node.target, "__module__", "") != "_operator" or not isinstance(node.meta.get("val"), torch.SymInt):
            continue
        key = (node.target, node.args)
        if key in known:
            node.replace_all_uses_with(known[key])
            graph.erase_node(node)
            continue
        known[key] = node
        there.add(node)
        if all(item.op == "placeholder" or item in there or _of_input(item) for item in node.all_input_nodes):
            max(node.all_input_nodes).append(node)


def _of_input(node: Node) -> bool:
    return (
        str(node.target) == "aten.sym_size.int" and isinstance(node.args[0], Node) and node.args[0].op == "placeholder"
    )


def _merge_growing(graph: Graph) -> None:
    """``cat(cat(cat(a, b), c), d)`` is ``cat(a, b, c, d)``."""
    for node in [*graph.nodes]:
        if str(node.target) != "aten.cat.default":
            continue
        axis = _axis(node)
        inner = node.args[0][0]
        while isinstance(inner, Node) and str(inner.target) == "aten.cat.default" and _axis(inner) == axis:
            if len(inner.users) != 1 or inner.meta.get("stack_trace") != node.meta.get("stack_trace"):
                break
            node.args = ([*inner.args[0], *node.args[0][1:]], *node.args[1:])  # type: ignore[misc,index]
            node.meta["merged"] = True
            graph.erase_node(inner)
            inner = node.args[0][0]  # type: ignore[index]


def _axis(node: Node) -> int:
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return int(axis) % max(node.meta["val"].ndim, 1)  # type: ignore[arg-type]


def _merge_filled(graph: Graph) -> None:
    """``y[:, 0] = a``, ``y[:, 1] = b`` … on a new array, all of it written, is ``stack([a, b, …])``."""
    for node in [*graph.nodes]:
        if str(node.target) != "aten.select_scatter.default" or any(_fills(user, node) for user in node.users):
            continue
        chain = [node]
        while isinstance(chain[-1].args[0], Node) and _fills(chain[-1], chain[-1].args[0]):
            before = chain[-1].args[0]
            if any(user is not chain[-1] and not _serves(user, chain[-1]) for user in before.users):
                break
            chain.append(before)
        chain.reverse()
        size = node.meta["val"].shape[node.args[2]]
        places = [item.args[3] for item in chain]
        if len(chain) < 3 or not isinstance(size, int) or sorted(places, key=str) != sorted(range(size), key=str):
            continue
        values = [value for _, value in sorted(zip(places, map(_value, chain), strict=True), key=lambda pair: pair[0])]
        if any(not isinstance(value, Node) or not alike(value.meta["val"], values[0].meta["val"]) for value in values):
            continue
        if (
            values[0].meta["val"].dtype != node.meta["val"].dtype
            or values[0].meta["val"].ndim + 1 != node.meta["val"].ndim
        ):
            continue
        node.target, node.args, node.kwargs = torch.ops.aten.stack.default, (values, node.args[2]), {}
        node.meta["merged"] = True
        graph.eliminate_dead_code()


def _fills(node: Node, source: Node) -> bool:
    """Whether ``node`` writes another entry of an array that ``source`` has written an entry of, in the same place."""
    same = str(node.target) == str(source.target) == "aten.select_scatter.default"
    return bool(same and node.args[0] is source and node.args[2] == source.args[2])


def _serves(user: Node, scatter: Node) -> bool:
    """Whether ``user`` is only the entry that ``scatter`` then overwrites."""
    return str(user.target) == "aten.select.int" and all(
        str(item.target) == "aten.copy.default" and item is scatter.args[1] for item in user.users
    )


def _value(scatter: Node) -> Any:
    value = scatter.args[1]
    if isinstance(value, Node) and str(value.target) == "aten.copy.default" and isinstance(value.args[1], Node):
        if alike(value.args[1].meta["val"], value.meta["val"]):
            return value.args[1]
    return value


def alike(a: Any, b: Any) -> bool:
    """Whether two fake values are tensors of one dtype and of the same sizes."""
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    return a.dtype == b.dtype and [*map(str, a.shape)] == [*map(str, b.shape)]
