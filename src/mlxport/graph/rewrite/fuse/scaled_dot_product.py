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

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.fused_ops import attention, sliding_window
from mlxport.graph.lower.mask_rows import every_row_sees
from mlxport.graph.lower.traits import View, traits_of
from mlxport.graph.rewrite.fuse.fusion import Fusion
from mlxport.graph.rewrite.fuse.heads import HeadAxes
from mlxport.graph.rewrite.fuse.keys import absorb_scale, unrepeat
from mlxport.graph.rewrite.fuse.mask_forms import mask_form
from mlxport.graph.rewrite.fuse.products import contraction
from mlxport.graph.rewrite.fuse.scores import Declined, Mask, find_scores
from mlxport.graph.rewrite.fuse.values import CannotEvaluate, Values
from mlxport.graph.rewrite.graph_queries import Editor, is_cast, kind, ndim, peel, same_size, shape, where

__all__ = ["apply"]

_aten = torch.ops.aten


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
    cut = False
    while len(weights.users) == 1:
        user = next(iter(weights.users))
        if not is_cast(user) and not _keeps_matrix(user):
            if cut or not _all_but_last(user):
                break
            cut = True
        weights = user
    products = [(user, found) for user in weights.users if (found := contraction(user)) is not None]
    if not products:
        return False
    scores = find_scores(softmax.args[0], values)
    if scores is None:
        return False
    if len(weights.users) > 1:
        raise Declined("the attention weights are used elsewhere")
    if cut is not (scores.sinks is not None):
        raise Declined("the scores have more columns than there are keys")
    output, after = products[0]
    axis = softmax.args[1] % ndim(softmax)
    layout = HeadAxes(scores, axis, after, weights)
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
    flat = (query, key, value)
    query, key, value = _unmerged(*flat) if not isinstance(final, Node) else flat
    val = layout.result_value(query, value, output)
    more = () if scores.sinks is None else (_sinks(scores.sinks, query, values),)
    made = edit.call(attention, query, key, value, final, _plain(scale), *more, val=val)
    if query is not flat[0]:
        made = edit.view(made, [*edit.sizes(flat[0], (0, 1)), edit.size(value, 3)])
    edit.replace(layout.restored(edit, made))
    return True


def _unmerged(*flat: Node) -> tuple[Node, Node, Node]:
    """Queries, keys and values with batch and heads as they were before they were made one axis."""
    before = [node.args[0] if ndim(node) == 3 and _keeps_matrix(node) else node for node in flat]
    leads = [shape(node)[:2] for node in before]
    if all(ndim(node) == 4 for node in before) and all(map(same_size, leads[0] * 2, leads[1] + leads[2])):
        return before[0], before[1], before[2]
    return flat[0], flat[1], flat[2]


def _keeps_matrix(node: Node) -> bool:
    if traits_of(node).view is not View.RESHAPED or min(ndim(node), ndim(node.args[0])) < 2:
        return False
    return all(map(same_size, shape(node)[-2:], shape(node.args[0])[-2:]))


def _all_but_last(node: Node) -> bool:
    """Whether the node is its input without the last column."""
    if kind(node) != "slice" or node.args[1] not in (-1, ndim(node) - 1) or node.args[2] not in (0, None):
        return False
    return len(node.args) < 5 and node.args[3] == -1


def _sinks(column: Node, query: Node, values: Values) -> Node:
    """The score of each head's sink, from which ``column`` is made."""
    source: Any = column
    while traits_of(source).shaped:
        source = source.args[0]
    if ndim(source) == 1 and ndim(query) == 4 and same_size(shape(source)[0], shape(query)[1]):
        sizes = next(iter(values.sizes()))
        try:
            given = values.random(source, sizes)
            (got,) = values.run([column], {source: given}, sizes)
        except CannotEvaluate as error:
            raise Declined("the sinks are not one for each head") from error
        if got.ndim == 4 and torch.equal(got, given[:, None, None].expand_as(got)):
            return source
    raise Declined("the sinks are not one for each head")


def _plain(scale: float) -> float:
    """A scale without the noise of having been multiplied out: ``1 / sqrt(n)`` where it is that."""
    for exact in (1.0, 1 / math.sqrt(round(scale**-2)) if 1e-6 < scale < 1e3 and round(scale**-2) else 1.0):
        if math.isclose(scale, exact, rel_tol=1e-6):
            return exact
    return scale


def _mask(edit: Editor, masks: list[Mask], values: Values, lengths: tuple[Any, Any]) -> Any:
    """One mask of several: None, ``"causal"``, or a node."""
    kept = []
    for mask in masks:
        found = mask_form(mask.node, values, lengths, mask.visible, mask.factor)
        if found != "none":
            kept.append((mask, found))
    if not kept:
        return None
    if all(isinstance(found, str | int) for _, found in kept):  # all are causal: the smallest window hides the most
        windows = [(mask, found) for mask, found in kept if isinstance(found, int)]
        narrowest, form = min(windows, key=lambda item: item[1]) if windows else kept[0]
        assert form is not None
        return _known(edit, form, narrowest.node, lengths)
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
    sizes = [place.known_size(length) for length in lengths]
    if None in sizes:
        place, sizes = edit, [edit.size(mask, ndim(mask) + axis) for axis in (-2, -1)]
    fake = mask.meta["val"]
    with fake.fake_mode:
        val = torch.empty(lengths, dtype=torch.bool, device=fake.device)
    more = [] if same_size(*lengths) else [sizes[1]]
    made = place.call(sliding_window, sizes[0], found, *more, val=val)
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
    if traits_of(node).logic == "not" and node.args[0].meta["val"].dtype is torch.bool:
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
        while kind(mask) == "where" and mask_form(mask.args[0], values, lengths) == "none":
            mask = mask.args[1]  # nothing is hidden
            given["attn_mask"] = mask
        visible = True if mask.meta["val"].dtype is torch.bool else None
        found = mask_form(mask, values, lengths, visible)
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
