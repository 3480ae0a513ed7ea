"""How a state follows from the one before: ``a * state + b``, ``max(state + a, b)``, or what moves up in a window.

These are what all tokens can be computed of at once. Which it is follows from the ops between what is read and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import sympy
import torch
from torch.fx import Node

from mlxport.graph.lower.traits import View, traits_of
from mlxport.graph.rewrite.graph_queries import Editor, kind, ndim, peel, same_shape, shape, value

__all__ = ["Recurrence", "concrete", "recurrence"]

_aten = torch.ops.aten
_ROWS = 2  # what a batch counts where places of elements are followed
_ARRANGED = (View.RESHAPED, View.REORDERED, View.BROADCAST)


@dataclass(frozen=True)
class Recurrence:
    """How a state follows from the one before.

    Attributes:
        form: ``linear``: ``state * change + new``; ``largest``: ``max(state + change, new)``; ``window``: the state
            without its first, and ``new``.
        change: What changes the state, a node or a number.
        new: What comes to it.
        sums: Nodes that have the numbers of the new state in their order, under other sizes.
        through: All that is made of the state before on the way to the new one, which included.
        joined: Of a window, the state and what is new.
    """

    form: Literal["linear", "largest", "window"]
    change: Any
    new: Node
    sums: tuple[Node, ...] = ()
    through: frozenset[Node] = frozenset()
    joined: Node | None = None


@dataclass
class _Linear:
    """``state * scale + shift``, None for 1 and 0; ``places``: the elements of the state, by their numbers."""

    scale: Any
    shift: Any
    places: torch.Tensor


class _Other(Exception):
    """A state that follows in another way."""


def concrete(size: Any) -> int:
    """A size with some number of rows: none but the batch's is unknown where this is asked."""
    return (
        size if isinstance(size, int) else int(size.node.expr.subs(dict.fromkeys(size.node.expr.free_symbols, _ROWS)))
    )


def recurrence(editor: Editor, held: Node, written: Node) -> Recurrence | None:
    """How ``written`` follows from ``held``; None if in none of these ways. New nodes are made before ``written``."""
    window = _window(held, written)
    if window is not None:
        return window
    try:
        return _StatesFinder(editor, held).found(written)
    except _Other:
        return None


def _window(held: Node, written: Node) -> Recurrence | None:
    """``cat([held, x], axis)`` without its first, x being one."""
    joined = peel(written.args[0]) if kind(written) == "slice" else None
    if kind(joined) != "cat" or len(joined.args[0]) != 2 or peel(joined.args[0][0]) is not held:  # type: ignore[union-attr]
        return None
    x = joined.args[0][1]  # type: ignore[union-attr]
    axis = (joined.args[1] if len(joined.args) > 1 else 0) % ndim(held)  # type: ignore[union-attr]
    along, start, *end = (*written.args[1:], None, None)[:3]
    last = end[0] if end and isinstance(end[0], int) else 2**63
    kept = (along or 0) % ndim(held) == axis and start == 1 and last > shape(held)[axis]
    fits = ndim(held) == 3 and axis in (1, 2) and shape(x)[axis] == 1 and len(written.args) < 5
    return Recurrence("window", None, x, joined=joined) if kept and fits else None


class _StatesFinder:
    """Follows the elements of what is held through the ops to what is kept."""

    def __init__(self, editor: Editor, held: Node) -> None:
        self.editor, self.held = editor, held
        self.known: dict[Node, _Linear | None] = {}

    def found(self, written: Node) -> Recurrence:
        sums = self._sums(written)
        first = sums[-1]
        if kind(first) == "maximum":
            return self._largest(first, sums)
        form = self.of(written)
        if form is None:
            return self._made(0.0, written, sums, "linear")
        if not torch.equal(form.places.reshape(-1), torch.arange(form.places.numel())):
            raise _Other
        return self._made(1.0 if form.scale is None else form.scale, form.shift, sums, "linear")

    def _made(self, change: Any, new: Any, sums: tuple[Node, ...], form: Any) -> Recurrence:
        if not isinstance(new, Node) or not same_shape(value(sums[0]), value(self.held)):
            raise _Other
        if isinstance(change, Node) and ndim(change) < ndim(self.held):
            change = self.editor.view(change, [1] * (ndim(self.held) - ndim(change)) + list(shape(change)))
        through = {node for node, linear in self.known.items() if linear is not None} | set(sums)
        return Recurrence(form, change, self._full(new, sums[0]), sums, frozenset(through))

    def _sums(self, written: Node) -> tuple[Node, ...]:
        """``written``, and what it shows under other sizes."""
        found = [written]
        while True:
            last = found[-1]
            shown = last.args[0] if traits_of(last).copy or traits_of(last).view in (View.RESHAPED, View.PART) else None
            if not isinstance(shown, Node) or shown is self.held or not _as_many(shown, last):
                return tuple(found)
            found.append(shown)

    def _largest(self, node: Node, sums: tuple[Node, ...]) -> Recurrence:
        forms = [self.of(item) for item in node.args]
        form = next((form for form in forms if form is not None), None)
        new = next((item for item, form in zip(node.args, forms, strict=True) if form is None), None)
        if form is None or new is None or form.scale is not None or len(sums) != 1:
            raise _Other
        return self._made(0.0 if form.shift is None else form.shift, new, sums, "largest")

    def of(self, node: Any) -> _Linear | None:
        """``node`` as ``state * scale + shift``; None where it is not made of the state."""
        if not isinstance(node, Node) or ndim(node) < 0:  # a size of the state is nothing of it
            return None
        if node not in self.known:
            self.known[node] = self._of(node)
        return self.known[node]

    def _of(self, node: Node) -> _Linear | None:
        if node is self.held:
            sizes = [concrete(size) for size in shape(node)]
            return _Linear(None, None, torch.arange(torch.Size(sizes).numel()).reshape(sizes))
        forms = [self.of(item) for item in node.all_input_nodes]
        if not any(forms):
            return None
        form = self.of(node.args[0])
        if traits_of(node).copy and form is not None:
            return form
        if traits_of(node).view in (*_ARRANGED, View.PART) and form is not None:
            return self._viewed(node, form)
        if kind(node) not in ("add", "sub", "mul") or node.kwargs or len(node.args) != 2:
            raise _Other
        return self._changed(node)

    def _viewed(self, node: Node, form: _Linear) -> _Linear:
        args = [_numbers(item) for item in node.args[1:]]
        places = node.target(form.places, *args, **node.kwargs)  # type: ignore[operator]
        scale, shift = (self._same_view(node, item) for item in (form.scale, form.shift))
        return _Linear(scale, shift, places)

    def _same_view(self, node: Node, part: Any) -> Any:
        if not isinstance(part, Node):
            return part
        whole = self._full(part, node.args[0])
        return self.editor.call(node.target, whole, *node.args[1:], **node.kwargs)  # type: ignore[arg-type]

    def _full(self, part: Node, like: Any) -> Node:
        """``part`` with the sizes of a node that it is broadcast to."""
        if same_shape(value(part), value(like)):
            return part
        sizes = self.editor.sizes(like, range(ndim(like)))
        return self.editor.call(_aten.expand.default, part, sizes)

    def _changed(self, node: Node) -> _Linear:
        """A state that something is added to, or that is multiplied."""
        first, second = node.args
        form, other = self.of(first), second
        if form is None:
            form, other = self.of(second), first
        if form is None or self.of(other) is not None or kind(node) == "sub" and form is not self.of(first):
            raise _Other
        places = form.places.broadcast_to([concrete(size) for size in shape(node)])
        if kind(node) == "mul":
            scale = other if form.scale is None else self._call("mul", form.scale, other)
            return _Linear(scale, form.shift and self._call("mul", form.shift, other), places)
        if kind(node) == "sub":
            other = self._call("neg", other) if form.shift is None else other
            return _Linear(form.scale, other if form.shift is None else self._call("sub", form.shift, other), places)
        return _Linear(form.scale, other if form.shift is None else self._call("add", form.shift, other), places)

    def _call(self, name: str, *args: Any) -> Any:
        if not any(isinstance(item, Node) for item in args):
            return getattr(torch, name)(*(torch.tensor(item) for item in args)).item()
        first, *rest = sorted(args, key=lambda item: not isinstance(item, Node)) if name != "sub" else args
        packet = getattr(_aten, name)
        target = packet.default if name == "neg" else packet.Tensor
        return self.editor.call(target, first, *rest)


def _as_many(one: Node, other: Node) -> bool:
    """Whether both have as many numbers."""
    if ndim(one) < 0:
        return False
    counts = [
        sympy.prod(getattr(getattr(size, "node", None), "expr", size) for size in shape(item)) for item in (one, other)
    ]
    return bool(counts[0] == counts[1])


def _numbers(item: Any) -> Any:
    """An argument of an op, sizes as numbers."""
    if isinstance(item, list | tuple):
        return [_numbers(part) for part in item]
    return concrete(item.meta["val"]) if isinstance(item, Node) else item
