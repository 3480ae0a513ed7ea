"""Modules captured for one token that can compute all at once: each token is a row of the batch, but for the states.

Where the states follow from those before as ``recurrences`` knows, all are computed first; the rest is as for one.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from mlxport.graph.lower import token_ops
from mlxport.graph.lower.traits import traits_of
from mlxport.graph.rewrite.caches.cached_step import CachedStep
from mlxport.graph.rewrite.caches.products_of_states import attend_linearly, is_linear_attention
from mlxport.graph.rewrite.caches.recurrences import Recurrence, recurrence
from mlxport.graph.rewrite.caches.token_states import FIRST, LAST, module_of_each_token
from mlxport.graph.rewrite.fuse.values import symbols
from mlxport.graph.rewrite.graph_queries import Editor, ancestors, kind, ndim, shape

__all__ = ["KeptState", "fold_tokens"]

_aten = torch.ops.aten
_LARGEST_STATE = 4096  # numbers for a token: more than these are not kept for each

# Of each scan the place of its slot among its arguments.
_SCANS: dict[Any, int] = {
    token_ops.linear_states: 3,
    token_ops.largest_states: 3,
    token_ops.past_windows: 3,
    token_ops.linear_attention: 5,
}

# What is read, what is kept, and where: its cache, slot and mask.
KeptState = tuple[Node, Node, tuple[Any, ...]]


def fold_tokens(step: CachedStep, path: str, states: Sequence[KeptState]) -> bool:
    """Let the module at ``path`` compute all tokens in one call, if its states allow it; whether they do."""
    module = _Module(step, path)
    known = module.recurrences(states)
    if known is None:
        return False
    rows = module.fold()
    for kept, state in known:
        change, new = (rows.get(item, item) for item in (state.change, state.new))
        module.put(kept, replace(state, change=change, new=new))
    _in_order(step.captured.graph)
    _number_slots(module, [place for (*_, place), _ in known])
    step.captured.each_token = {other: axis for other, axis in step.captured.each_token.items() if other != path}
    return True


class _Module:
    """The nodes of a module that was captured for one token."""

    def __init__(self, step: CachedStep, path: str) -> None:
        self.step, self.captured = step, step.captured
        self.path = path
        self.inside = self._nodes()
        self.first = [node for node in self.inside if kind(node) == FIRST]
        self.last = [node for node in self.inside if kind(node) == LAST]
        self.batch = shape(step.ids)[0].node.expr if not isinstance(shape(step.ids)[0], int) else None
        self.length: Any = None
        self.spread: set[Node] = set()  # what is one for all texts, and comes to be one for each token

    def _nodes(self) -> list[Node]:
        return [node for node in self.captured.graph.nodes if self.holds(node)]

    def recurrences(self, states: Sequence[KeptState]) -> list[tuple[KeptState, Recurrence]] | None:
        """Each state, in the order to compute them; None where one is not known, or the module is not of rows."""
        if not self.first or not self.last or self.batch is None or not self._of_rows({held for held, *_ in states}):
            return None
        found = []
        for held, written, place in states:
            state = recurrence(Editor(self.captured, written), held, written)
            if state is None or not _is_small(held) and not is_linear_attention(state, held):
                return None
            found.append(((held, written, place), state))
        self.inside = self._nodes()
        return _ordered(found)

    def _of_rows(self, held: set[Node]) -> bool:
        """Whether all that comes in is a row for each text, or the same for all."""
        own = set(self.inside)
        for node in self.inside:
            if node in self.first:
                if not _unfolds(node, self.batch):
                    return False
                self.spread |= {node} if _batch_axis(node, self.batch) is None else set()
                continue
            if not self.spread.isdisjoint(node.all_input_nodes) and _batch_axis(node, self.batch) is None:
                if not _keeps_rows(node):
                    return False
                self.spread.add(node)
            if node not in self.last and symbols([node]) - {self.batch}:
                return False
            for given in node.all_input_nodes:
                if given in own or given in held:
                    continue
                size = isinstance(given.meta.get("val"), torch.SymInt) and given.meta["val"].node.expr == self.batch
                if symbols([given]) and not size and not (node in self.last and given in (node.args[2], *own)):
                    return False
        return True

    def holds(self, node: Node) -> bool:
        """Whether the node lies in the module."""
        return module_of_each_token(self.step, node) == self.path

    def fold(self) -> dict[Any, Node]:
        """Make a row of each token, and let all sizes follow; gives what is in the place of one token's inputs."""
        x, axis = self.first[0].args
        edit = Editor(self.captured, self.inside[0])
        batch, self.length = edit.known_size(shape(self.step.ids)[0]), edit.size(x, axis)
        rows = batch.meta["val"] * self.length.meta["val"]
        for node in self.inside:
            if node not in self.last and node not in self.first:
                value = pytree.tree_map(lambda item: self._folded(item, rows), node.meta["val"])
                node.meta["val"] = self._spread(value, rows) if node in self.spread else value
        size, made_of = None, {}
        for node in self.first:
            edit = Editor(self.captured, node)
            made = self._rows(edit, *node.args, batch=batch, rows=rows)
            if size is None:
                size = edit.call(_aten.sym_size.int, made, 0, val=rows)
            made_of[node] = edit.replace(made)
        inner = [node for node in self.inside if node not in self.first and node not in self.last]
        for node in inner:
            node.args, node.kwargs = map_arg(
                (node.args, node.kwargs), lambda item: size if self._is_batch(item) else item
            )
        for node in self.last:
            edit = Editor(self.captured, node)
            edit.replace(self._tokens(edit, node.args[0], node.args[1], batch))
        self.inside = self._nodes()
        return made_of

    def _is_batch(self, item: Node) -> bool:
        size = item.meta.get("val")
        return isinstance(size, torch.SymInt) and bool(size.node.expr == self.batch)

    def _folded(self, item: Any, rows: Any) -> Any:
        if isinstance(item, torch.SymInt):
            return rows if item.node.expr == self.batch else item
        if not isinstance(item, torch.Tensor):
            return item
        return self.step.fake(tuple(self._folded(size, rows) for size in item.shape), item.dtype)

    def _spread(self, item: torch.Tensor, rows: Any) -> torch.Tensor:
        return self.step.fake((rows, *item.shape[1:]), item.dtype)

    def _rows(self, edit: Editor, x: Any, axis: Any, *, batch: Any, rows: Any) -> Node:
        """``x`` [batch, …, tokens, …] as [batch * tokens, …, 1, …]."""
        if _batch_axis(x, self.batch) is None:  # the same for all texts
            sizes = edit.sizes(x, range(ndim(x)))
            x = edit.call(_aten.expand.default, x, [batch, *sizes[1:]])
        others = [other for other in range(1, ndim(x)) if other != axis]
        turned = edit.permute(x, (0, axis, *others))
        sizes = [1 if other == axis else shape(x)[other] for other in range(1, ndim(x))]
        val = self.step.fake((rows, *sizes), x.meta["val"].dtype)
        return edit.call(_aten.reshape.default, turned, [-1, *sizes], val=val)

    def _tokens(self, edit: Editor, y: Any, axis: Any, batch: Any) -> Node:
        """``y`` [batch * tokens, …, 1, …] as [batch, …, tokens, …]."""
        others = [other for other in range(1, ndim(y)) if other != axis]
        sizes = [batch, self.length, *(shape(y)[other] for other in others)]
        back = [0] * ndim(y)
        for place, other in enumerate([0, axis, *others]):
            back[other] = place
        return edit.permute(edit.view(y, sizes), back)

    def put(self, kept: KeptState, state: Recurrence) -> None:
        """Put a state, for all tokens, in the places of what was read and kept for one."""
        held, written, (cache, slot, mask) = kept
        place = (cache, slot, mask, self.length)
        if state.form == "window":
            return self._window(held, state, place)
        if is_linear_attention(state, held):
            return attend_linearly(state, place, self.captured)
        edit = Editor(self.captured, written)
        change = state.change
        if not isinstance(change, Node):
            sizes = [1] * ndim(state.new)
            change = edit.call(_aten.new_full.default, state.new, sizes, change)
        value = self.step.fake((state.new.meta["val"].shape[0], *shape(held)[1:]), held.meta["val"].dtype)
        target = token_ops.linear_states if state.form == "linear" else token_ops.largest_states
        made = edit.call(target, change, state.new, *place, val=(value, value))
        before, after = (edit.call(operator.getitem, made, index, val=value) for index in range(2))
        held.replace_all_uses_with(before, delete_user_cb=lambda user: user in self.inside)
        for item in state.sums:
            shown = _shown(edit, after, item)
            item.replace_all_uses_with(shown)

    def _window(self, held: Node, state: Recurrence, place: tuple[Any, ...]) -> None:
        joined = state.joined
        assert joined is not None
        edit = Editor(self.captured, joined)
        axis = next(axis for axis in (1, 2) if shape(state.new)[axis] == 1 and shape(joined)[axis] > 1)
        x = edit.call(_aten.squeeze.dim, state.new, axis)
        width = shape(joined)[axis] - 1
        sizes = (*x.meta["val"].shape[:1], width + 1, shape(x)[1])
        made = edit.call(token_ops.past_windows, x, width, *place, val=self.step.fake(sizes, x.meta["val"].dtype))
        edit.replace(edit.permute(made, (0, 2, 1)) if axis == 2 else made)


def _shown(edit: Editor, after: Node, item: Node) -> Node:
    """``after`` under the sizes of ``item``, whose numbers it has."""
    if ndim(item) == ndim(after):
        return after
    sizes = [-1, *shape(item)[1:]]
    return edit.call(_aten.reshape.default, after, sizes, val=item.meta["val"])


def _is_small(held: Node) -> bool:
    return torch.Size(shape(held)[1:]).numel() <= _LARGEST_STATE


def _batch_axis(x: Node, batch: Any) -> int | None:
    return next(
        (axis for axis, size in enumerate(shape(x)) if not isinstance(size, int) and size.node.expr == batch), None
    )


def _unfolds(node: Node, batch: Any) -> bool:
    """Whether a tensor that one token is taken of has its texts first, or none, and sizes that are known."""
    x, axis = node.args
    where = _batch_axis(x, batch)
    others = [size for place, size in enumerate(shape(x)) if place not in (0, axis)]
    first = where == 0 or where is None and shape(x)[0] == 1
    return axis != 0 and first and all(isinstance(size, int) for size in others)


def _keeps_rows(node: Node) -> bool:
    """Whether each row of the result comes from the same row of what is one for all texts."""
    if ndim(node) < 1 or shape(node)[0] != 1:
        return False
    along = node.args[1] if kind(node) == "unsqueeze" else 0
    return traits_of(node).pointwise or traits_of(node).copy or along % ndim(node) != 0  # type: ignore[operator]


def _ordered(states: list[tuple[KeptState, Recurrence]]) -> list[tuple[KeptState, Recurrence]] | None:
    """Each after those that it follows from; None where one follows from itself."""
    done: list[tuple[KeptState, Recurrence]] = []
    left = {kept[0]: (kept, state) for kept, state in states}
    while left:
        for held, (kept, state) in left.items():
            given = [item for item in (state.change, state.new) if isinstance(item, Node)]
            sizes = [user for item in left for user in item.users if kind(user) == "sym_size"]
            if not (ancestors(given, sizes) | set(given)) & set(left):
                done.append((kept, state))
                del left[held]
                break
        else:
            return None
    return done


def _number_slots(module: _Module, places: Sequence[tuple[Any, ...]]) -> None:
    """Let states be kept in the order of the program: the last of a layer moves its cache on."""
    scans = [node for node in module.captured.graph.nodes if node.target in _SCANS and module.holds(node)]
    scans.sort(key=lambda node: node.target is not token_ops.past_windows)  # the cache says where rows end
    for node, slot in zip(scans, sorted(slot for _, slot, _ in places), strict=True):
        where = _SCANS[node.target]
        node.args = (*node.args[:where], slot, *node.args[where + 1 :])


def _in_order(graph: torch.fx.Graph) -> None:
    """Put each node after all that it takes, the others staying where they are."""
    placed: set[Node] = set()
    waiting: list[Node] = []
    end = next(iter(graph.nodes))
    for node in list(graph.nodes):
        waiting.append(node)
        moved = True
        while moved:
            moved = False
            for item in waiting:
                if all(given in placed for given in item.all_input_nodes):
                    if item is not node or len(waiting) > 1:
                        end.append(item)
                    end = item
                    placed.add(item)
                    waiting.remove(item)
                    moved = True
                    break
