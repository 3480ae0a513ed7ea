"""Where batch, heads, lengths and widths stand in the two products of an attention, and how to bring them in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.rewrite.fuse.products import Contraction
from mlxport.graph.rewrite.fuse.scores import Declined, Mask, Scores
from mlxport.graph.rewrite.graph_queries import Editor, ndim, peel, shape

__all__ = ["HeadAxes"]

_aten = torch.ops.aten


class HeadAxes:
    """Where batch, heads, lengths and widths stand in the products around one softmax."""

    def __init__(self, scores: Scores, axis: int, after: Contraction, weights: Node) -> None:
        self.scores, self.after = scores, after
        first = scores.product
        rank = ndim(scores.widest)
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
        self._values(weights)

    def _row(self, rows: Sequence[str]) -> str:
        """The letter of the queries: the keys lack it, and it is not a group of heads."""
        first = self.scores.product
        if len(rows) == 1:
            return rows[0]
        if self.viewed or not rows:
            raise Declined("the axis of the queries is not clear")
        order = [letter for letter in first.result if letter in rows]
        return order[-1]  # batch axes that the keys are broadcast over come first

    def _values(self, weights: Node) -> None:
        """The other operand of the second product, in the letters of the first."""
        after = self.after
        mine, other, axes, thin = (
            (after.left, after.b, after.right, after.thin[1])
            if after.a is weights
            else (after.right, after.a, after.left, after.thin[0])
        )
        if after.a is after.b or (peel(after.a) is not peel(weights) and peel(after.b) is not peel(weights)):
            raise Declined("the attention weights are multiplied with themselves")
        known = {self.rows: "#rows", self.keys: "#keys"}
        names = [known.get(letter, letter) for letter in self.scores.product.result]
        if self.viewed:
            names = [*(f"#{index}" for index in range(len(mine) - 2)), "#rows", "#keys"]
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
            width = edit.size(self.value, self.value_axes.index("#value"))
            return edit.permute(edit.view(made, [*edit.sizes(weights, range(ndim(weights) - 1)), width]), order)
        axes = [*self.batch, "#rows", "#value"]
        if len(self.batch) == 3:
            first = self.scores.product
            sizes = {letter: edit.size(first.node, index) for index, letter in enumerate(first.result)}
            made = edit.view(made, [*(sizes[letter] for letter in self.batch), sizes[self.rows], edit.size(made, 3)])
        return edit.permute(made, [axes.index(axis) for axis in self.result_axes])
