"""Rows for the experts that were chosen: sorted by expert where they are many, as mlx-lm's models have it.

A prompt then reads each expert's matrices once, in order. The few rows of a step are not even repeated.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower import cache_ops, expert_ops
from mlxport.graph.lower.fused_ops import gather_mm
from mlxport.graph.lower.traits import View, traits_of
from mlxport.graph.rewrite.fuse.values import CannotEvaluate, Values, close
from mlxport.graph.rewrite.graph_queries import SPLITS, Editor, is_float, kind, ndim, permutation, same_size, shape

__all__ = ["sort_experts"]

_aten = torch.ops.aten


def sort_experts(captured: Captured, values: Values) -> None:
    """Rewrite what is computed by rows of tokens, each once for every expert that was chosen for it."""
    groups: dict[Node, list[Node]] = {}
    for node in captured.graph.nodes:
        if node.target is gather_mm and not node.args[3]:
            groups.setdefault(node.args[2], []).append(node)
    for experts, products in groups.items():
        chosen = _choices(experts)
        if chosen is not None:
            _ChosenRows(captured, values, chosen, experts, products).rewrite()
    captured.graph.eliminate_dead_code()


def _choices(experts: Node) -> Node | None:
    """Experts [..., k] of each token, of which ``experts`` are all, in their order."""
    node = experts
    while ndim(node) < 2:
        if traits_of(node).view is not View.RESHAPED:
            return None
        node = node.args[0]  # type: ignore[assignment]
    return node if isinstance(shape(node)[-1], int) else None


class _ChosenRows:
    """What is computed by rows, one for each choice.

    In the graph these have the axes of ``experts`` and one of channels, maybe among some of size 1. Rewritten, the axis
    of channels is the last, after one of size 1.
    """

    def __init__(self, captured: Captured, values: Values, chosen: Node, experts: Node, products: list[Node]) -> None:
        self._captured, self._values = captured, values
        self._chosen, self._experts, self._products = chosen, experts, products
        self._again: dict[Node, Node] = {}

    def rewrite(self) -> None:
        """Write it again, if all of it is by rows."""
        region = self._region()
        firsts = [node for node in self._products if node.args[0] not in region]
        sources = {self._tokens(node) for node in firsts}
        if region.isdisjoint(self._products) or len(sources) != 1:
            return
        (source,) = sources
        if source is None:
            return
        made = self._sorted(firsts[0], source)
        for node in sorted(region):
            self._write(node, made)
        for node in sorted(region):
            if any(user not in region for user in node.users):
                self._leave(node, made)

    # What belongs to it.

    def _region(self) -> set[Node]:
        """The products and what follows from them by rows."""
        region: set[Node] = set()
        for node in self._captured.graph.nodes:
            if node in self._products or self._by_rows(node, region):
                region.add(node)
        return region

    def _by_rows(self, node: Node, region: set[Node]) -> bool:
        before = [item for item in node.all_input_nodes if item in region]
        if not before or node.op != "call_function":
            return False
        traits = traits_of(node)
        if kind(node) in SPLITS or kind(node) == "slice":
            return before == [node.args[0]] and self._parts_channels(node)
        if kind(node) == "getitem":
            return kind(node.args[0]) in SPLITS
        channels = self._channels(node)
        if channels is None:
            return False
        if traits.view in (View.RESHAPED, View.REORDERED):
            kept = same_size(shape(node)[channels], shape(before[0])[self._channels(before[0]) or 0])
            ordered = traits.view is View.RESHAPED or permutation(node)[: self._rank] == list(range(self._rank))
            return kept and ordered
        alike = all(ndim(item) == ndim(node) and self._channels(item) == channels for item in before)
        others = [item for item in node.all_input_nodes if item not in region]
        pointwise = traits.pointwise or node.target is cache_ops.swiglu
        return pointwise and alike and all(ndim(item) == 0 or self._is_bias(item) for item in others)

    @property
    def _rank(self) -> int:
        return ndim(self._experts)

    def _channels(self, node: Node) -> int | None:
        """The axis of channels of what has a row for each choice; None for what is otherwise."""
        if not isinstance(node.meta.get("val"), torch.Tensor) or not is_float(node):
            return None
        sizes, lead = shape(node), shape(self._experts)
        if len(sizes) <= self._rank or not all(map(same_size, sizes, lead)):
            return None
        wide = [axis for axis in range(self._rank, len(sizes)) if not same_size(sizes[axis], 1)]
        return wide[0] if len(wide) == 1 else None

    def _parts_channels(self, node: Node) -> bool:
        source, position = node.args[0], 1 if kind(node) == "slice" else 2
        axis = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
        return axis % ndim(source) == self._channels(source)  # type: ignore[operator,no-any-return]

    def _is_bias(self, node: Node) -> bool:
        """Whether it is a vector of each row's expert, as it lies: ``bias[experts]``."""
        return kind(node) == "index" and list(node.args[1]) == [self._experts] and ndim(node) == self._rank + 1  # type: ignore[arg-type]

    def _tokens(self, product: Node) -> Node | None:
        """The rows [..., width] of tokens, of which a first product takes each for every choice of its token."""
        lead = shape(self._chosen)[:-1]
        node = product.args[0]
        while isinstance(node, Node):
            alike = ndim(node) == len(lead) + 1 and all(map(same_size, shape(node), lead))
            if alike and self._repeats(node, product.args[0]):  # type: ignore[arg-type]
                return node
            moving = [item for item in node.all_input_nodes if item not in self._values.static]
            node = moving[0] if len(moving) == 1 else None
        return None

    def _repeats(self, tokens: Node, rows: Node) -> bool:
        """Whether ``rows`` are those of ``tokens``, each as often as experts are chosen: what is computed says so."""
        for sizes in self._values.sizes():
            given = self._values.random(tokens, sizes)
            try:
                (got,) = self._values.run([rows], {tokens: given}, sizes)
                lead = [self._values.number(size, sizes) for size in shape(self._experts)]
            except CannotEvaluate:
                return False
            k = shape(self._chosen)[-1]
            wanted = given.unsqueeze(-2).expand(*given.shape[:-1], k, -1).reshape(*lead, 1, -1)
            if got.ndim != wanted.ndim or not close(got.expand_as(wanted), wanted):
                return False
        return True

    # Writing it again.

    def _sorted(self, first: Node, source: Node) -> tuple[Node, ...]:
        """Rows [..., 1, width], the expert of each, their order, and whether they are sorted."""
        lead, like = shape(self._chosen)[:-1], source.meta["val"]
        with like.fake_mode:
            value = (
                torch.empty((*lead, 1, 1, shape(source)[-1]), dtype=like.dtype),
                torch.empty_like(self._chosen.meta["val"]),
                torch.empty((), dtype=torch.int64),
            )
            truth = torch.empty((), dtype=torch.bool)
        edit = Editor(self._captured, first)
        made = edit.call(expert_ops.rows_by_expert, source, self._chosen, val=value)
        names = ("x", "experts", "order")
        parts = [edit.call(operator.getitem, made, index, val=value[index]) for index in range(3)]
        for part, name in zip(parts, names, strict=True):
            part.meta["variable"] = name
        is_sorted = edit.call(expert_ops.is_sorted, parts[2], val=truth)
        is_sorted.meta["variable"] = "is_sorted"
        return (*parts, is_sorted)

    def _write(self, node: Node, made: tuple[Node, ...]) -> None:
        rows, experts, _, is_sorted = made
        edit = Editor(self._captured, node)
        traits = traits_of(node)
        if node.target is gather_mm:
            x = self._again.get(node.args[0], rows)  # type: ignore[arg-type]
            value = self._fake(node, shape(node.args[1])[-1])
            self._again[node] = edit.call(gather_mm, x, node.args[1], experts, is_sorted, *node.args[4:], val=value)
        elif traits.view in (View.RESHAPED, View.REORDERED):
            self._again[node] = self._again[node.args[0]]  # type: ignore[index]
        elif kind(node) == "slice":
            self._again[node] = edit.call(node.target, self._again[node.args[0]], -1, *node.args[2:])  # type: ignore[index]
        elif kind(node) in SPLITS:
            given = self._again[node.args[0]]  # type: ignore[index]
            self._again[node] = edit.call(node.target, given, node.args[1], -1)  # type: ignore[arg-type]
        elif kind(node) == "getitem":
            self._again[node] = edit.call(operator.getitem, self._again[node.args[0]], node.args[1])  # type: ignore[index]
        else:
            self._again[node] = self._pointwise(edit, node, experts)

    def _pointwise(self, edit: Editor, node: Node, experts: Node) -> Node:
        def again(item: Node) -> Node:
            if item in self._again:
                return self._again[item]
            if self._is_bias(item):
                width = shape(item)[-1]
                return edit.call(expert_ops.bias_of_experts, item.args[0], experts, val=self._fake(item, width))
            return item

        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), again)
        value = self._fake(node, shape(node)[self._channels(node)])  # type: ignore[index]
        return edit.call(node.target, *args, val=value, **kwargs)  # type: ignore[arg-type]

    def _fake(self, node: Node, width: Any) -> torch.Tensor:
        value = node.meta["val"]
        with value.fake_mode:
            return torch.empty((*shape(self._chosen), 1, width), dtype=value.dtype, device=value.device)

    def _leave(self, node: Node, made: tuple[Node, ...]) -> None:
        """Give those outside of the region what they had: the rows in the order of the choices."""
        order, edit = made[2], Editor(self._captured, node)
        sizes = (*shape(self._chosen), shape(self._again[node])[-1])
        value = node.meta["val"]
        with value.fake_mode:
            value = torch.empty(sizes, dtype=value.dtype, device=value.device)
        back = edit.call(expert_ops.rows_of_tokens, self._again[node], order, self._chosen, val=value)
        outside = [user for user in node.users if user not in self._again]
        for user in [user for user in outside if not self._weigh(user, node, back)]:
            user.replace_input_with(node, self._as(edit, back, node))

    def _weigh(self, product: Node, node: Node, back: Node) -> bool:
        """Weigh rows as they lie by tokens, where that was done to all in a row and undone after it."""
        if kind(product) != "mul" or ndim(product) != ndim(node) or len(product.users) != 1:
            return False
        (joined,) = product.users
        others = [item for item in product.args[:2] if item is not node]
        if traits_of(joined).view is not View.RESHAPED or not self._alike(joined, shape(back)) or len(others) != 1:
            return False
        weights = others[0]
        while isinstance(weights, Node) and not self._alike(weights, shape(self._chosen)):
            weights = weights.args[0] if traits_of(weights).view is View.RESHAPED else None
        if weights is None:
            return False
        edit = Editor(self._captured, joined)
        column = edit.call(_aten.unsqueeze.default, weights, -1)
        edit.replace(edit.call(_aten.mul.Tensor, back, column, val=joined.meta["val"]))
        return True

    @staticmethod
    def _alike(node: Node, sizes: Any) -> bool:
        return ndim(node) == len(sizes) and all(map(same_size, shape(node), sizes))

    def _as(self, edit: Editor, back: Node, node: Node) -> Node:
        """``back`` [..., k, width] in the sizes of ``node``."""
        if self._alike(node, shape(back)):
            return back
        sizes: list[Any] = []
        for size in shape(node):
            known = (axis for axis, own in enumerate(shape(back)) if same_size(own, size))
            axis = next(known, None)
            sizes.append(size if isinstance(size, int) else -1 if axis is None else edit.size(back, axis))
        return edit.call(_aten.reshape.default, back, sizes, val=node.meta["val"])
