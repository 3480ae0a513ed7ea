"""Mixtures of experts: products with a matrix chosen for each row -> ``mx.gather_mm``.

Two forms: rows sorted by expert and multiplied in groups (``grouped_mm``), and a batched product with the gathered
matrices of all rows (``weight[experts]``), which need not be gathered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.fused_ops import gather_mm
from mlxport.graph.lower.traits import View, traits_of
from mlxport.graph.rewrite.fuse.fusion import Fusion
from mlxport.graph.rewrite.fuse.products import Contraction, contraction
from mlxport.graph.rewrite.fuse.values import Values
from mlxport.graph.rewrite.graph_queries import Editor, is_float, kind, ndim, shape, where
from mlxport.graph.rewrite.made_weights import make_weight

__all__ = ["apply"]

_aten = torch.ops.aten
_GROUPED = ("_grouped_mm", "transformers::grouped_mm_fallback")


def apply(captured: Captured, values: Values) -> Iterable[Fusion]:
    """Fuse grouped products and products with gathered matrices."""
    for node in list(captured.graph.nodes):
        place = where(node)
        if kind(node) in _GROUPED:
            yield Fusion("gather_mm", place, _grouped(captured, node))
        elif (product := contraction(node)) is not None and _gathered(captured, values, product):
            yield Fusion("gather_mm", place)
        elif kind(node) == "index_put":
            _inverse(captured, node)


def _grouped(captured: Captured, node: Node) -> str:
    """Rows sorted by expert: each row's expert is what they were sorted by."""
    x, weight, ends = node.args[:3]
    if len(node.args) > 3 and any(item is not None for item in node.args[3:]) or any(node.kwargs.values()):
        return "a bias or another dtype within the product"
    if ndim(x) != 2 or ndim(weight) != 3:
        return "groups of columns, not of rows"
    experts = _sorted_experts(ends)
    if experts is None:
        return "the groups are not those of sorted experts"
    edit = Editor(captured, node)
    rows = edit.call(_aten.unsqueeze.default, x, 1)
    made = edit.call(gather_mm, rows, weight, experts, True, val=_fake(node, [shape(x)[0], 1, shape(weight)[2]]))
    edit.replace(edit.call(_aten.squeeze.dim, made, 1, val=node.meta["val"]))
    return ""


def _fake(like: Node, sizes: list[Any]) -> torch.Tensor:
    fake = like.meta["val"]
    with fake.fake_mode:
        return torch.empty(sizes, dtype=fake.dtype, device=fake.device)


def _uncast(node: Any) -> Any:
    while traits_of(node).copy:
        node = node.args[0]
    return node


def _sorted_experts(ends: Any) -> Node | None:
    """The sorted experts whose counts add up to ``ends``."""
    ends = _uncast(ends)
    if kind(ends) != "cumsum":
        return None
    counts = _uncast(ends.args[0])
    if kind(counts) not in ("histc", "bincount"):
        return None
    if kind(counts) == "histc":
        given = dict(zip(("self", "bins", "min", "max"), counts.args, strict=False)) | dict(counts.kwargs)
        if given.get("min", 0) != 0 or given.get("max", 0) != given.get("bins", 100) - 1:
            return None
    experts = _uncast(counts.args[0])
    ascending = kind(experts) == "getitem" and kind(experts.args[0]) == "sort" and experts.args[1] == 0
    return experts if ascending and not any(experts.args[0].args[2:]) else None


def _gathered(captured: Captured, values: Values, product: Contraction) -> bool:
    """A product with ``weight[experts]``."""
    for x, axes, matrices, letters in (
        (product.a, product.left, product.b, product.right),
        (product.b, product.right, product.a, product.left),
    ):
        found = _chosen(captured, values, matrices)
        if found is not None and product.added is None:
            weight, experts, turned = found
            return _multiplied(captured, product, x, axes, letters, weight, experts, turned)
    return False


def _chosen(captured: Captured, values: Values, node: Any) -> tuple[Node, Node, bool] | None:
    """Weight and experts of ``weight[experts]``, and whether its matrices are transposed after that."""
    turned = False
    if kind(node) == "transpose" and {axis % ndim(node) for axis in node.args[1:]} == {ndim(node) - 1, ndim(node) - 2}:
        node, turned = node.args[0], True
    if kind(node) not in ("index", "index_select", "embedding"):
        return None
    if kind(node) == "index":
        weight, indices = node.args
        experts = indices[0] if len(indices) == 1 else None
    elif kind(node) == "index_select":
        weight, experts = (node.args[0], node.args[2]) if node.args[1] == 0 else (None, None)
    else:
        weight, experts = node.args[:2]
    if not isinstance(weight, Node) or not isinstance(experts, Node) or experts.meta["val"].dtype is torch.bool:
        return None
    if ndim(weight) != 3 or not is_float(weight):
        return None
    stacked = weight if weight in captured.weights else _reshaped(captured, values, weight)
    return None if stacked is None else (stacked, experts, turned)


def _reshaped(captured: Captured, values: Values, node: Node) -> Node | None:
    """A weight under other sizes, as a weight of its own: an expert's matrix was some rows of all of them."""
    source = node.args[0] if traits_of(node).view is View.RESHAPED else None
    if source not in captured.weights or any(not isinstance(size, int) for size in shape(node)):
        return None
    name = captured.weights[source] + "_by_expert"  # type: ignore[index]
    known = {other: item for item, other in captured.weights.items()}.get(name)
    if known is not None:
        return known if shape(known) == shape(node) else None

    def reshaped(graph: Graph, sources: Sequence[Node]) -> Node:
        made = graph.call_function(_aten.reshape.default, (sources[0], list(shape(node))))
        made.meta = {"val": node.meta["val"]}
        return made

    given = {captured.weights[source]: source.meta["val"]}  # type: ignore[index, union-attr]
    return make_weight(captured, values.folds, name, given, reshaped)


def _multiplied(
    captured: Captured,
    product: Contraction,
    x: Node,
    axes: str,
    letters: str,
    weight: Node,
    experts: Node,
    turned: bool,
) -> bool:
    lead, one, two = letters[: ndim(experts)], letters[-2], letters[-1]
    (summed,) = (set(product.left) & set(product.right)) - set(product.result)
    if summed not in (one, two) or any(letter not in product.result for letter in lead):
        return False
    free = two if summed == one else one
    rows = [letter for letter in axes if letter not in lead and letter != summed]
    if len(rows) > 1 or free not in product.result:
        return False
    edit = Editor(captured, product.node)
    swap = (summed == two) != turned  # stored as (expert, out, in)
    matrices = edit.permute(weight, [0, 2, 1]) if swap else weight
    known = list(axes)
    for letter in [*lead, *([] if rows else ["#row"])]:
        if letter not in known:
            x = edit.call(_aten.unsqueeze.default, x, 0)
            known.insert(0, letter)
    row = rows[0] if rows else "#row"
    order = [*lead, row, summed]
    x = edit.permute(x, [known.index(letter) for letter in order])
    sizes = dict(zip(product.result, shape(product.node), strict=True)) | {"#row": 1}
    val = _fake(product.node, [*(sizes[letter] for letter in lead), sizes[row], sizes[free]])
    made = edit.call(gather_mm, x, matrices, experts, False, val=val)
    result = [*lead, row, free]
    if row == "#row":
        made = edit.call(_aten.squeeze.dim, made, len(lead))
        result.remove(row)
    edit.replace(edit.permute(made, [result.index(letter) for letter in product.result]))
    return True


def _inverse(captured: Captured, node: Node) -> None:
    """``inverse[order] = arange(n)`` is ``argsort(order)``."""
    target, indices, numbers = node.args[:3]
    if (
        kind(target) not in ("empty_like", "zeros_like", "empty", "new_empty")
        or len(indices) != 1
        or len(node.args) > 3
    ):
        return
    order = indices[0]
    from_sort = kind(order) == "getitem" and kind(order.args[0]) == "sort" and order.args[1] == 1
    if not (from_sort or kind(order) == "argsort") or kind(numbers) != "arange" or ndim(order) != 1:
        return
    if str(numbers.target) != "aten.arange.default" or node.meta["val"].dtype is not torch.int64:
        return
    edit = Editor(captured, node)
    edit.replace(edit.call(_aten.argsort.default, order, val=node.meta["val"]))
