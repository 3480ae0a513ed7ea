"""Attention in its usual spellings -> ``mx.fast.scaled_dot_product_attention``.

Found from a softmax: back to the product of queries and keys (``scores``), forward to the product with the values.
Then, for these and for torch's own op: repeated keys are dropped, and masks that depend on sizes alone are recognised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture import Captured
from mlxport.graph.fuse.contractions import Contraction, contraction
from mlxport.graph.fuse.graphs import Editor, is_cast, kind, ndim, peel, same_size, shape, where
from mlxport.graph.fuse.keys import absorb_scale, unrepeat
from mlxport.graph.fuse.record import Fusion
from mlxport.graph.fuse.scores import Declined, Mask, Scores, find_scores
from mlxport.graph.fuse.targets import attention, sliding_window
from mlxport.graph.fuse.values import Values
from mlxport.graph.masks import every_row_sees, recognise

__all__ = ["apply"]

_aten = torch.ops.aten
_SHAPED = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")


def apply(captured: Captured, values: Values) -> Iterable[Fusion]:
    """Fuse attention that is written out, then simplify every attention's keys and mask."""
    for node in list(captured.graph.nodes):
        if kind(node) in ("softmax", "_softmax", "_safe_softmax") and node.users:
            place = where(node)
            try:
                if _written_out(captured, node, values):
                    yield Fusion("attention", place)
            except Declined as error:
                yield Fusion("attention", place, str(error))
    for node in list(captured.graph.nodes):
        if kind(node) == "scaled_dot_product_attention":
            place = where(node)
            yield Fusion("attention", place, _simplify(captured, node, values))


def _written_out(captured: Captured, softmax: Node, values: Values) -> bool:
    """Replace the attention around ``softmax``; False if there is none."""
    weights: Node = softmax
    while len(weights.users) == 1 and (is_cast(user := next(iter(weights.users))) or _keeps_matrix(user)):
        weights = user
    products = [(user, found) for user in weights.users if (found := contraction(user)) is not None]
    if not products:
        return False
    scores = find_scores(softmax.args[0], values)
    if scores is None:
        return False
    if len(weights.users) > 1:
        raise Declined("the attention weights are used elsewhere")
    output, after = products[0]
    axis = softmax.args[1] % ndim(softmax)
    layout = _Layout(scores, axis, after, weights)
    edit = Editor(captured, output)
    query, key, value, mask = layout.operands(edit)
    query, by_query = absorb_scale(query, values)
    key, by_key = absorb_scale(key, values)
    scale = scores.scale * by_query * by_key
    key, value = unrepeat(edit, key, value, values) if ndim(query) == 4 else (key, value)
    query, key = (
        peel(item) if peel(item).meta["val"].dtype == value.meta["val"].dtype else item for item in (query, key)
    )
    final = _mask(edit, mask, values, layout.lengths)
    if kind(softmax) == "_safe_softmax" and isinstance(final, Node):
        raise Declined("rows without a visible key give zeros")
    val = layout.result_value(query, value, output)
    made = edit.call(attention, query, key, value, final, _plain(scale), val=val)
    edit.replace(layout.restored(edit, made))
    return True


def _keeps_matrix(node: Node) -> bool:
    if kind(node) not in _SHAPED or min(ndim(node), ndim(node.args[0])) < 2:
        return False
    return all(map(same_size, shape(node)[-2:], shape(node.args[0])[-2:]))


def _plain(scale: float) -> float:
    """A scale without the noise of having been multiplied out: ``1 / sqrt(n)`` where it is that."""
    for exact in (1.0, 1 / math.sqrt(round(scale**-2)) if 1e-6 < scale < 1e3 and round(scale**-2) else 1.0):
        if math.isclose(scale, exact, rel_tol=1e-6):
            return exact
    return scale


class _Layout:
    """Where batch, heads, lengths and widths stand in the products around one softmax."""

    def __init__(self, scores: Scores, axis: int, after: Contraction, weights: Node) -> None:
        self.scores, self.after = scores, after
        first = scores.product
        rank = ndim(scores.widest)
        wide_after = ndim(after.node)
        self.viewed = scores.viewed or ndim(weights) != ndim(first.node) or rank != ndim(first.node)
        if self.viewed and axis != ndim(weights) - 1 and axis < ndim(first.node) - 1:
            raise Declined("softmax is not over the keys")
        self.keys = first.result[-1] if self.viewed else first.result[axis]
        if (self.keys in first.left) == (self.keys in first.right):
            raise Declined("softmax is not over the keys")
        self.flipped = self.keys in first.left
        self.query, self.key = (first.b, first.a) if self.flipped else (first.a, first.b)
        self.query_axes, self.key_axes = (first.right, first.left) if self.flipped else (first.left, first.right)
        self.query_thin, self.key_thin = first.thin[::-1] if self.flipped else first.thin
        (self.width,) = (set(first.left) & set(first.right)) - set(first.result)
        rows = [letter for letter in first.result if letter not in self.key_axes or letter in self.key_thin]
        rows = [letter for letter in rows if letter in self.query_axes and letter != self.keys]
        self.rows = self._row(rows)
        self.batch = [letter for letter in first.result if letter not in (self.rows, self.keys)]
        self._values(weights, wide_after)

    def _row(self, rows: Sequence[str]) -> str:
        """The letter of the queries: the keys lack it, and it is not a group of heads."""
        first = self.scores.product
        if len(rows) == 1:
            return rows[0]
        if self.viewed or not rows:
            raise Declined("the axis of the queries is not clear")
        order = [letter for letter in first.result if letter in rows]
        return order[-1]  # batch axes that the keys are broadcast over come first

    def _values(self, weights: Node, rank: int) -> None:
        """The other operand of the second product, in the letters of the first."""
        after = self.after
        mine, other, axes, thin = (
            (after.left, after.b, after.right, after.thin[1])
            if after.a is weights
            else (after.right, after.a, after.left, after.thin[0])
        )
        if after.a is after.b or (peel(after.a) is not peel(weights) and peel(after.b) is not peel(weights)):
            raise Declined("the attention weights are multiplied with themselves")
        lead = [self.scores.product.result] if not self.viewed else [None]
        if lead[0] is None:
            names = [*self._stand_ins(len(mine) - 2), "#rows", "#keys"]
        else:
            names = [{self.rows: "#rows", self.keys: "#keys"}.get(letter, letter) for letter in lead[0]]
        if len(names) != len(mine):
            raise Declined("the shape of the attention weights is not clear")
        translate = dict(zip(mine, names, strict=True))
        (summed,) = (set(after.left) & set(after.right)) - set(after.result)
        if translate.get(summed) != "#keys":
            raise Declined("the product with the values does not sum over the keys")
        free = [letter for letter in axes if letter not in translate]
        if len(free) != 1:
            raise Declined("the values have more than one width")
        translate[free[0]] = "#value"
        self.value = other
        self.value_axes = [translate[letter] for letter in axes]
        self.value_thin = {translate[letter] for letter in thin}
        self.result_axes = [translate[letter] for letter in after.result]

    @staticmethod
    def _stand_ins(count: int) -> list[str]:
        return [f"#{index}" for index in range(count)]

    @property
    def lengths(self) -> tuple[Any, Any]:
        """Number of queries and of keys."""
        first = self.scores.product
        sizes = dict(zip(first.result, shape(first.node), strict=True))
        return sizes[self.rows], sizes[self.keys]

    def operands(self, edit: Editor) -> tuple[Node, Node, Node, list[Mask]]:
        """Queries, keys and values as (batch, heads, length, width), and the masks in the same order of axes."""
        if self.viewed:
            return self._viewed_operands(edit)
        groups = [letter for letter in self.batch if letter not in self.key_axes or letter in self.key_thin]
        query = self._ordered(
            edit, self.query, list(self.query_axes), [*self.batch, self.rows, self.width], self.query_thin
        )
        shared = [letter for letter in self.batch if letter not in groups] if len(self.batch) > 2 else self.batch
        key = self._ordered(edit, self.key, list(self.key_axes), [*shared, self.keys, self.width], self.key_thin)
        value = self._ordered(edit, self.value, self.value_axes, [*shared, "#keys", "#value"], self.value_thin)
        masks = [self._mask_axes(edit, mask) for mask in self.scores.masks]
        if len(self.batch) > 3:
            raise Declined(f"{len(self.batch)} axes before the queries")
        if len(self.batch) == 3:
            if (
                len(groups) != 1
                or groups[0] != self.batch[2]
                or groups[0] in self.value_axes
                and groups[0] not in self.value_thin
            ):
                raise Declined("five axes that are not groups of heads")
            sizes = shape(query)
            if not isinstance(sizes[1], int) or not isinstance(sizes[2], int):
                raise Declined("the number of heads is dynamic")
            query = edit.view(query, [edit.size(query, 0), sizes[1] * sizes[2], *edit.sizes(query, (3, 4))])
            masks = [self._without_group(edit, mask) for mask in masks]
        return query, key, value, masks

    def _ordered(self, edit: Editor, node: Node, axes: list[str], wanted: list[str], thin: Any) -> Node:
        """``node`` with the axes ``wanted``; those that it lacks are broadcast."""
        rename = {self.rows: "#rows", self.keys: "#keys"}
        axes = [rename.get(axis, axis) for axis in axes]
        wanted = [rename.get(axis, axis) for axis in wanted]
        extra = [axis for axis in axes if axis not in wanted]
        for axis in extra:
            if axis not in thin:
                raise Declined("an operand has an axis of its own")
            node = edit.call(_aten.squeeze.dim, node, axes.index(axis))
            axes.remove(axis)
        missing = [axis for axis in wanted if axis not in axes]
        for axis in missing:
            node = edit.call(_aten.unsqueeze.default, node, 0)
            axes = [axis, *axes]
        node = edit.permute(node, [axes.index(axis) for axis in wanted])
        spread = [axis for axis in wanted if axis in missing or axis in thin]
        if not spread or (spread == [wanted[-3]] and "#rows" not in wanted):
            return node  # one head of keys serves all
        product = self.scores.product
        names = [rename.get(letter, letter) for letter in product.result]
        sizes = [
            edit.size(product.node, names.index(axis)) if axis in spread else edit.size(node, position)
            for position, axis in enumerate(wanted)
        ]
        return edit.call(_aten.expand.default, node, sizes)

    def _mask_axes(self, edit: Editor, mask: Mask) -> Mask:
        """The mask with its axes in the order batch, queries, keys."""
        order = [self.scores.product.result.index(axis) for axis in (*self.batch, self.rows, self.keys)]
        if order == sorted(order):
            return mask
        node = mask.node
        for _ in range(len(order) - ndim(node)):
            node = edit.call(_aten.unsqueeze.default, node, 0)
        return Mask(edit.permute(node, order), mask.visible, mask.factor, mask.fill)

    def _without_group(self, edit: Editor, mask: Mask) -> Mask:
        node = mask.node
        for axis in (2,):
            if ndim(node) == 5 and shape(node)[axis] == 1:
                node = edit.call(_aten.squeeze.dim, node, axis)
        if ndim(node) == 5:
            sizes = shape(node)
            if not isinstance(sizes[1], int) or not isinstance(sizes[2], int):
                raise Declined("the mask has five axes")
            node = edit.view(node, [edit.size(node, 0), sizes[1] * sizes[2], *edit.sizes(node, (3, 4))])
        return Mask(node, mask.visible, mask.factor, mask.fill)

    def _viewed_operands(self, edit: Editor) -> tuple[Node, Node, Node, list[Mask]]:
        """Batch and heads are one axis in the products and two between them: make them two everywhere."""
        widest = self.scores.widest
        rank = ndim(widest)
        lead = edit.sizes(widest, range(rank - 2))
        batch = [letter for letter in self.batch]
        if len(batch) > 1 and rank != len(batch) + 2:
            raise Declined("the shape of the scores is not clear")
        query = self._ordered(edit, self.query, list(self.query_axes), [*batch, self.rows, self.width], self.query_thin)
        key = self._ordered(edit, self.key, list(self.key_axes), [*batch, self.keys, self.width], self.key_thin)
        value_batch = [axis for axis in self.result_axes if axis not in ("#rows", "#value")]
        value = (
            edit.permute(self.value, [self.value_axes.index(axis) for axis in (*value_batch, "#keys", "#value")])
            if set(value_batch) <= set(self.value_axes)
            else self.value
        )
        made = [
            node
            if ndim(node) == rank
            else edit.view(node, [*lead, *edit.sizes(node, (ndim(node) - 2, ndim(node) - 1))])
            for node in (query, key, value)
        ]
        masks = [self._spread_mask(edit, mask, lead, rank) for mask in self.scores.masks]
        return made[0], made[1], made[2], masks

    def _spread_mask(self, edit: Editor, mask: Mask, lead: list[Any], rank: int) -> Mask:
        """A mask on merged batch and heads, split."""
        node = mask.node
        if ndim(node) == ndim(self.scores.product.node) < rank and ndim(node) > 2 and shape(node)[0] != 1:
            node = edit.view(node, [*lead, *edit.sizes(node, (ndim(node) - 2, ndim(node) - 1))])
        return Mask(node, mask.visible, mask.factor, mask.fill)

    def result_value(self, query: Node, value: Node, output: Node) -> torch.Tensor:
        """The fake value of the attention."""
        fake = output.meta["val"]
        with fake.fake_mode:
            return torch.empty((*shape(query)[:-1], shape(value)[-1]), dtype=fake.dtype, device=fake.device)

    def restored(self, edit: Editor, made: Node) -> Node:
        """The attention's result as the second product had it."""
        if self.viewed:
            canonical = [*(axis for axis in self.result_axes if axis not in ("#rows", "#value")), "#rows", "#value"]
            order = [canonical.index(axis) for axis in self.result_axes]
            weights = self.after.a if self.after.b is self.value else self.after.b
            sizes = [
                *edit.sizes(weights, range(ndim(weights) - 1)),
                edit.size(self.value, self.value_axes.index("#value")),
            ]
            return edit.permute(edit.view(made, sizes), order)
        axes = [*self.batch, "#rows", "#value"]
        if len(self.batch) == 3:
            first = self.scores.product
            sizes = {letter: edit.size(first.node, index) for index, letter in enumerate(first.result)}
            made = edit.view(made, [*(sizes[letter] for letter in self.batch), sizes[self.rows], edit.size(made, 3)])
        return edit.permute(made, [axes.index(axis) for axis in self.result_axes])


def _mask(edit: Editor, masks: list[Mask], values: Values, lengths: tuple[Any, Any]) -> Any:
    """One mask of several: None, ``"causal"``, or a node."""
    kept = []
    for mask in masks:
        found = recognise(mask.node, values, lengths, mask.visible, mask.factor)
        if found != "none":
            kept.append((mask, found))
    if not kept:
        return None
    if len({found for _, found in kept}) == 1 and isinstance(kept[0][1], str | int):
        return _known(edit, kept[0][1], kept[0][0].node, lengths)
    visible = [edit_not(edit, mask) for mask, _ in kept if mask.visible is not None]
    added = [_factored(edit, mask) for mask, _ in kept if mask.visible is None]
    fill = max((mask.fill for mask, _ in kept if mask.visible is not None), default=-math.inf)
    shown = _chain(edit, _aten.bitwise_and.Tensor, visible)
    total = _chain(edit, _aten.add.Tensor, added)
    if shown is None:
        return total
    if total is None:
        if fill == -math.inf or every_row_sees(shown):
            return shown
        if fill > -1e9:
            raise Declined(f"where every key is masked with {fill:g}, the scores still count")
    dtype = total.meta["val"].dtype if total is not None else torch.float32
    low = edit.call(_aten.scalar_tensor.default, max(fill, torch.finfo(dtype).min) if fill > -math.inf else fill,
                    dtype=dtype, val=_scalar(shown, dtype))  # fmt: skip
    other = total if total is not None else edit.call(_aten.scalar_tensor.default, 0.0, dtype=dtype,
                                                      val=_scalar(shown, dtype))  # fmt: skip
    return edit.call(_aten.where.self, shown, other, low)


def _known(edit: Editor, found: str | int, mask: Node, lengths: tuple[Any, Any]) -> Any:
    """The mask argument for a mask that is recognised."""
    if not isinstance(found, int):
        return None if found == "none" else found
    for user in edit.graph.nodes:  # the layers of a model share a mask
        if user.target is sliding_window and user.meta["mask"] is mask:
            return user
    place = Editor(edit.captured, mask)
    size = lengths[0] if isinstance(lengths[0], int) else None
    if size is None:
        source = next((node for node in edit.graph.nodes if node.op == "call_function"
                       and isinstance(node.meta.get("val"), torch.SymInt) and same_size(node.meta["val"], lengths[0])), None)  # fmt: skip
        place = place if source is not None and source < mask else edit
        size = source or edit.size(mask, ndim(mask) - 1)
    fake = mask.meta["val"]
    with fake.fake_mode:
        val = torch.empty((lengths[0], lengths[0]), dtype=torch.bool, device=fake.device)
    made = place.call(sliding_window, size, found, val=val)
    made.meta["mask"] = mask
    return made


def _scalar(like: Node, dtype: torch.dtype) -> torch.Tensor:
    fake = like.meta["val"]
    with fake.fake_mode:
        return torch.empty((), dtype=dtype, device=fake.device)


def edit_not(edit: Editor, mask: Mask) -> Node:
    """Truth values that are true where a key is seen."""
    node = mask.node
    if node.meta["val"].dtype is not torch.bool:
        node = edit.call(_aten.ne.Scalar, node, 0)
    if mask.visible:
        return node
    if kind(node) in ("logical_not", "bitwise_not") and node.args[0].meta["val"].dtype is torch.bool:
        return node.args[0]
    return edit.call(_aten.logical_not.default, node)


def _factored(edit: Editor, mask: Mask) -> Node:
    return mask.node if mask.factor == 1 else edit.call(_aten.mul.Tensor, mask.node, mask.factor)


def _chain(edit: Editor, target: Any, nodes: Sequence[Node]) -> Node | None:
    result: Node | None = None
    for node in nodes:
        result = node if result is None else edit.call(target, result, node)
    return result


def _simplify(captured: Captured, node: Node, values: Values) -> str:
    """Keys as they were before they were repeated, no mask where its values are known; why not, if so."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    query, key, value = given["query"], given["key"], given["value"]
    if given.get("dropout_p", 0.0) or ndim(query) != 4 or not isinstance(shape(query)[-1], int):
        return "" if ndim(query) != 4 else "dropout, or a dynamic width"
    edit = Editor(captured, node)
    scale = given.get("scale")
    scale = 1 / math.sqrt(shape(query)[-1]) if scale is None else scale
    lengths = shape(query)[-2], shape(key)[-2]
    mask = given.get("attn_mask")
    if given.get("is_causal"):
        if not same_size(*lengths):
            return "is_causal with more keys than queries is aligned to the first key"
        final: Any = "causal"
    elif mask is not None:
        visible = True if mask.meta["val"].dtype is torch.bool else None
        found = recognise(mask, values, lengths, visible)
        final = mask if found is None else _known(edit, found, mask, lengths)
    else:
        final = None
    fewer = unrepeat(edit, key, value, values)
    grouped = fewer[0] is not key
    query, by_query = absorb_scale(query, values)
    if isinstance(final, Node) and not every_row_sees(final):
        if grouped:  # torch's op gives zeros to a query that sees no key
            given |= {"query": query, "key": fewer[0], "value": fewer[1], "scale": scale * by_query, "enable_gqa": True}
            rest = {name: given[name] for name in ("scale", "enable_gqa")}
            made = edit.call(node.target, *(given[name] for name in names[:4]), val=node.meta["val"], **rest)
            edit.replace(made)
        elif by_query != 1:
            node.args = (query, *node.args[1:])
            node.kwargs = {**node.kwargs, "scale": scale * by_query}
        return "the mask depends on inputs, a query that sees no key must give zeros"
    edit.replace(edit.call(attention, query, *fewer, final, _plain(scale * by_query), val=node.meta["val"]))
    return ""
