"""Modules that lay all tokens in one row after another, and apart again, compute them as they lie: [batch, length, …].

As hand-written models have it: no reshape before the experts and none after them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower import cache_ops, expert_ops
from mlxport.graph.lower.fused_ops import gather_mm
from mlxport.graph.lower.traits import View, traits_of
from mlxport.graph.rewrite.graph_queries import Editor, kind, ndim, same_size, shape

__all__ = ["keep_axes"]

# Ops along an axis, which their schemas call ``dim``.
_ALONG = frozenset(
    "softmax _softmax log_softmax _log_softmax topk sort gather scatter scatter_add cumsum unsqueeze squeeze slice "
    "select argmax argmin".split()
)
# Ops on rows, whatever axes lie before those that they are about.
_OF_ROWS = frozenset({
    cache_ops.swiglu, gather_mm, expert_ops.bias_of_experts, expert_ops.chosen, expert_ops.is_sorted,
    expert_ops.largest, expert_ops.rows_by_expert, expert_ops.rows_of_tokens, expert_ops.shares,
})  # fmt: skip


def keep_axes(captured: Captured) -> None:
    """Leave out the reshapes where everything between them is by rows."""
    groups: dict[Any, list[Node]] = {}
    for node in captured.graph.nodes:
        if _lays_in_a_row(node):
            groups.setdefault((shape(node)[0].node.expr, ndim(node.args[0])), []).append(node)
    for firsts in groups.values():
        for region in _LaidTokens(firsts).regions():
            _keep(captured, firsts[0], region)
    captured.graph.eliminate_dead_code()


def _lays_in_a_row(node: Node) -> bool:
    """Whether it makes [rows, width] of [batch, length, width]."""
    if traits_of(node).view is not View.RESHAPED or ndim(node) != 2 or ndim(node.args[0]) != 3:
        return False
    symbolic = not isinstance(shape(node)[0], int)
    return symbolic and same_size(shape(node)[-1], shape(node.args[0])[-1])  # type: ignore[arg-type]


class _LaidTokens:
    """What is computed by rows of several tensors that have as many."""

    def __init__(self, firsts: list[Node]) -> None:
        self._rows, self._lead = shape(firsts[0])[0], shape(firsts[0].args[0])[:2]  # type: ignore[arg-type]
        self._firsts = {node for node in firsts if all(map(same_size, shape(node.args[0]), self._lead))}  # type: ignore
        self._found: dict[Node, Node] = {}  # a node of the same region, of which one is its own
        self._refused: set[Node] = set()
        self._ends: set[Node] = set()

    def regions(self) -> Iterable[list[Node]]:
        """The nodes of each region, in order; the first are reshapes, and so are the last."""
        for node in next(iter(self._firsts)).graph.nodes:
            if node in self._firsts:
                self._found[node] = node
            elif before := [item for item in node.all_input_nodes if item in self._found and item not in self._ends]:
                self._look_at(node, before)
        bad = {self._of(node) for node in self._refused}
        regions: dict[Node, list[Node]] = {}
        for node in self._found:
            regions.setdefault(self._of(node), []).append(node)
        return [nodes for first, nodes in regions.items() if first not in bad and not self._ends.isdisjoint(nodes)]

    def _look_at(self, node: Node, before: list[Node]) -> None:
        for item in before[1:]:
            self._found[self._of(item)] = self._of(before[0])
        if self._parts_again(node):
            self._found[node] = before[0]
            self._ends.add(node)
        elif node.op == "call_function" and self._by_rows(node, before):
            self._found[node] = before[0]
        else:
            self._refused.add(before[0])

    def _of(self, node: Node) -> Node:
        while self._found[node] is not node:
            node = self._found[node]
        return node

    def _parts_again(self, node: Node) -> bool:
        """Whether it makes [batch, length, …] of [rows, …]."""
        if traits_of(node).view is not View.RESHAPED or not self._has_rows(node.args[0]):
            return False
        sizes = (*self._lead, *shape(node.args[0])[1:])  # type: ignore[arg-type]
        return ndim(node) == len(sizes) and all(map(same_size, shape(node), sizes))

    def _has_rows(self, node: Any) -> bool:
        return ndim(node) > 0 and same_size(shape(node)[0], self._rows)

    def _by_rows(self, node: Node, before: list[Node]) -> bool:
        traits = traits_of(node)
        if node.target in _OF_ROWS or kind(node) == "getitem":
            return True
        if any(not self._has_rows(item) for item in [*before, node] if ndim(item) >= 0):
            return False
        if kind(node) == "linear":
            return before == [node.args[0]]
        if traits.pointwise or traits.copy:
            others = [item for item in node.all_input_nodes if item not in before]
            alike = all(ndim(item) == ndim(node) for item in before)
            return alike and all(-1 < ndim(item) < ndim(node) for item in others)
        if traits.view is View.RESHAPED and kind(node) not in _ALONG:
            return all(isinstance(size, int) for size in shape(node)[1:])
        if traits.reduction or kind(node) in _ALONG:
            return all(axis % max(1, ndim(node.args[0])) > 0 for axis in _axes(node)) and before == [
                item for item in node.all_input_nodes if ndim(item) >= 0
            ]
        return traits.creation and before == node.all_input_nodes and kind(node).endswith("_like")


def _axes(node: Node) -> list[int]:
    """The axes that an op is along; the first, where it does not say."""
    place = _place_of_axes(node)
    given = node.args[place] if place is not None and len(node.args) > place else node.kwargs.get("dim")
    if given is None and kind(node) in ("topk", "sort"):
        return [-1]
    return [given] if isinstance(given, int) else list(given) if given else [0]  # type: ignore[call-overload]


def _place_of_axes(node: Node) -> int | None:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return names.index("dim") if "dim" in names else None


def _keep(captured: Captured, like: Node, region: list[Node]) -> None:
    """Let a region compute tokens as they lie."""
    rows, lead = shape(like)[0], shape(like.args[0])[:2]  # type: ignore[arg-type]

    def kept(item: Any) -> Any:
        if not isinstance(item, torch.Tensor) or not item.ndim or not same_size(item.shape[0], rows):
            return item
        with item.fake_mode:  # type: ignore[attr-defined]
            return torch.empty((*lead, *item.shape[1:]), dtype=item.dtype, device=item.device)

    for node in region:
        source: Any = node.args[0]
        if _lays_in_a_row(node) and source not in region:
            node.replace_all_uses_with(source)
        elif traits_of(node).view is View.RESHAPED and kind(node) not in _ALONG:
            edit = Editor(captured, node)
            rest = shape(node)[1:] if same_size(shape(node)[0], rows) else shape(node)[2:]
            edit.replace(edit.view(source, [*edit.sizes(source, (0, 1)), *rest]))
        else:
            if kind(node) in _ALONG or traits_of(node).reduction:
                _along(node)
            node.meta["val"] = pytree.tree_map(kept, node.meta["val"])


def _along(node: Node) -> None:
    """Count axes with one more before them."""
    place, more = _place_of_axes(node), lambda axis: axis + 1 if axis > 0 else axis
    if place is None:
        return
    name = node.target._schema.arguments[place].name  # type: ignore[union-attr]
    given = node.args[place] if len(node.args) > place else node.kwargs.get(name)
    counted = (
        [more(axis) for axis in given] if isinstance(given, list | tuple) else given if given is None else more(given)
    )
    if len(node.args) > place:
        node.args = (*node.args[:place], counted, *node.args[place + 1 :])
    elif name in node.kwargs:
        node.kwargs = {**node.kwargs, name: counted}
