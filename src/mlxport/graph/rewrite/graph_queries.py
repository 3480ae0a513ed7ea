"""What all fusions ask of a graph: names of ops, constants, who uses what; and how a node is replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.origin import module_path
from mlxport.graph.lower.traits import View, op_name, traits_of

__all__ = [
    "SPLITS",
    "Editor",
    "ancestors",
    "is_float",
    "kind",
    "last_axis_slice",
    "merge_views",
    "ndim",
    "peel",
    "permutation",
    "same_shape",
    "same_size",
    "shape",
    "swaps_matrix",
    "used_once",
    "value",
    "where",
]


SPLITS = frozenset({"split", "split_with_sizes", "chunk"})
"""Ops that give the parts of an axis, the third of their arguments."""


def kind(node: Any) -> str:
    """``mul`` for ``aten.mul.Tensor``; the function's name for a target of our own; ``""`` for what is no op."""
    return op_name(node.target) if isinstance(node, Node) and node.op == "call_function" else ""


def value(node: Any) -> Any:
    """The fake tensor (or size) that the node computes."""
    return node.meta.get("val") if isinstance(node, Node) else None


def shape(node: Node) -> tuple[Any, ...]:
    """Sizes: ints, and symbolic ones."""
    return tuple(node.meta["val"].shape)


def ndim(node: Any) -> int:
    """Number of axes; -1 for what is no tensor."""
    found = value(node)
    return int(found.ndim) if isinstance(found, torch.Tensor) else -1


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are surely equal."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return bool(a.node.expr == b.node.expr)


def same_shape(a: Any, b: Any) -> bool:
    """Whether two fake tensors have surely the same sizes."""
    return len(a.shape) == len(b.shape) and all(map(same_size, a.shape, b.shape))


def is_float(node: Any) -> bool:
    """Whether the node is a tensor of floating-point numbers."""
    found = value(node)
    return isinstance(found, torch.Tensor) and found.dtype.is_floating_point


def is_cast(node: Any) -> bool:
    """Whether the node only changes the dtype of a floating-point tensor."""
    return traits_of(node).copy and is_float(node) and is_float(node.args[0])


def peel(node: Any) -> Any:
    """``node`` before casts between floating-point dtypes."""
    while is_cast(node):
        node = node.args[0]
    return node


def where(node: Node) -> str:
    """Path of the module that computes the node."""
    return module_path(node).partition("@")[0]


def ancestors(nodes: Iterable[Node], known: Iterable[Node] = ()) -> set[Node]:
    """All that ``nodes`` depend on where ``known`` are given."""
    seen = set(known)
    stack = [node for node in nodes if node not in seen]
    while stack:
        for item in stack.pop().all_input_nodes:
            if item not in seen:
                seen.add(item)
                stack.append(item)
    return seen.difference(known)


def merge_views(graph: Graph) -> None:
    """A view of a view is a view."""
    for node in graph.nodes:
        while traits_of(node).sized and traits_of(node.args[0]).sized:
            node.args = (node.args[0].args[0], *node.args[1:])
    graph.eliminate_dead_code()


class Editor:
    """Writes into a captured graph: new nodes take their scope and their source line from the node they replace."""

    def __init__(self, captured: Captured, anchor: Node) -> None:
        self.captured, self.graph, self.anchor = captured, captured.graph, anchor

    def call(self, target: Callable[..., Any], *args: Any, val: Any = None, **kwargs: Any) -> Node:
        """A new node before the anchor; its fake value is computed unless it is given."""
        with self.graph.inserting_before(self.anchor):
            node = self.graph.call_function(target, args, kwargs)
        node.meta = {
            key: self.anchor.meta[key] for key in ("nn_module_stack", "stack_trace") if key in self.anchor.meta
        }
        node.meta["val"] = self._fake(target, args, kwargs) if val is None else val
        return node

    def _fake(self, target: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        from torch.fx.node import map_arg

        real = map_arg((tuple(args), kwargs), lambda node: node.meta["val"])
        fakes = [item for item in torch.utils._pytree.tree_leaves(real) if isinstance(item, torch.Tensor)]
        with fakes[0].fake_mode, torch.no_grad():  # type: ignore[attr-defined]
            return target(*real[0], **real[1])

    def size(self, node: Node, axis: int) -> Any:
        """A size of ``node`` as an argument: an int, or a node that gives it, of another tensor where that is known."""
        size = shape(node)[axis]
        found = self.known_size(size)
        return self.call(torch.ops.aten.sym_size.int, node, axis, val=size) if found is None else found

    def known_size(self, size: Any) -> Any:
        """A size as an argument, if something before the anchor gives it: an int, or a node."""
        if isinstance(size, int):
            return size
        for node in self.graph.nodes:
            if not node < self.anchor:
                return None
            known = node.meta.get("val")
            if node.op == "call_function" and isinstance(known, torch.SymInt) and same_size(known, size):
                return node
            if node in self.captured.inputs and isinstance(known, torch.Tensor):
                for axis, own in enumerate(known.shape):
                    if same_size(own, size):
                        return self.call(torch.ops.aten.sym_size.int, node, axis, val=size)
        return None

    def sizes(self, node: Node, axes: Iterable[int]) -> list[Any]:
        """Several sizes of ``node``."""
        return [self.size(node, axis) for axis in axes]

    def view(self, node: Node, sizes: Sequence[Any]) -> Node:
        """``node`` with other sizes; itself if they are its own."""
        wanted = [size if isinstance(size, int) else size.meta["val"] for size in sizes]
        own = shape(node)
        if len(own) == len(wanted) and all(map(same_size, own, wanted)):
            return node
        if traits_of(node).sized:
            before = shape(node.args[0])
            if len(before) == len(wanted) and all(map(same_size, before, wanted)):
                return node.args[0]
        with node.meta["val"].fake_mode:
            val = torch.empty(wanted, dtype=node.meta["val"].dtype, device=node.meta["val"].device)
        return self.call(torch.ops.aten.reshape.default, node, list(sizes), val=val)

    def permute(self, node: Node, axes: Sequence[int]) -> Node:
        """``node`` with its axes in another order, undoing the op that made it where it is the inverse."""
        axes = list(axes)
        if traits_of(node).view is View.REORDERED:
            inner = permutation(node)
            merged = [inner[axis] for axis in axes]
            if merged == sorted(merged):
                return node.args[0]
        if axes == sorted(axes):
            return node
        swapped = [axis for axis, other in enumerate(axes) if axis != other]
        if len(swapped) == 2:
            return self.call(torch.ops.aten.transpose.int, node, *swapped)
        return self.call(torch.ops.aten.permute.default, node, axes)

    def cast(self, node: Node, dtype: torch.dtype) -> Node:
        """``node`` in another dtype."""
        if node.meta["val"].dtype == dtype:
            return node
        return self.call(torch.ops.aten._to_copy.default, node, dtype=dtype)

    def replace(self, new: Node) -> Node:
        """Put ``new`` in the place of the anchor."""
        old = self.anchor
        if new is not old:
            if "variable" in old.meta and new.op == "call_function":
                new.meta.setdefault("variable", old.meta["variable"])
            old.replace_all_uses_with(new)
            self.captured.mutations[:] = [
                (name, new if node is old else node) for name, node in self.captured.mutations
            ]
            self.graph.erase_node(old)
        return new

    def weight(self, name: str, tensor: torch.Tensor, like: Node) -> Node:
        """A new constant of the port, called ``name`` (or ``name_2`` … where that is taken)."""
        names, base, number = set(self.captured.state) | set(self.captured.weights.values()), name, 1
        for node, known in self.captured.weights.items():  # one that holds the same
            if known.startswith(name) and torch.equal(self.captured.state.get(known, tensor.new_empty(0)), tensor):
                return node
        while name in names:
            number += 1
            name = f"{base}_{number}"
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            node = self.graph.placeholder(name.replace(".", "_"))
        with like.meta["val"].fake_mode:
            node.meta["val"] = torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device=like.meta["val"].device)
        self.captured.weights[node] = name
        self.captured.state[name] = tensor
        return node


def last_axis_slice(node: Node, source: Node) -> tuple[int, int, int] | None:
    """First number, end and step of a slice of the last axis of ``source``, whose size is fixed; None for others."""
    if kind(node) != "slice" or node.args[0] is not source:
        return None
    given: tuple[Any, ...] = tuple(node.args[1:])
    axis, start, stop, step = given + (0, None, None, 1)[len(given) :]
    numbers = all(isinstance(bound, int | None) for bound in (start, stop, step))
    if axis % ndim(source) != ndim(source) - 1 or not numbers:
        return None
    return slice(start, stop, step).indices(shape(source)[-1])


def swaps_matrix(node: Node) -> bool:
    """Whether an op exchanges the last two of three axes."""
    return traits_of(node).view is View.REORDERED and permutation(node) == [0, 2, 1]


def used_once(captured: Captured, weight: Any) -> bool:
    """Whether a node is a weight that has one name, and one use."""
    name = captured.weights.get(weight, "")
    return bool(name) and len(weight.users) == 1 and len(captured.aliases.get(name, (name,))) == 1


def permutation(node: Node) -> list[int]:
    """The axes of an op that puts them in another order, as a permutation: what it makes of sizes that all differ."""
    told_apart = torch.empty([2 + axis for axis in range(ndim(node))], device="meta")
    return [size - 2 for size in node.target(told_apart, *node.args[1:], **node.kwargs).shape]  # type: ignore[operator]
