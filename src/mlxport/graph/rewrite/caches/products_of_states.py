"""States that are sums of products of keys and values, and read by a product with a query: linear attention."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.lower import token_ops
from mlxport.graph.rewrite.caches.recurrences import Recurrence
from mlxport.graph.rewrite.graph_queries import Editor, kind, ndim, peel, shape

__all__ = ["attend_linearly", "is_linear_attention"]

_aten = torch.ops.aten


def is_linear_attention(state: Recurrence, held: Node) -> bool:
    """Whether a state [batch, heads, D, E] is one, decays by one number for a head, and is read by one query."""
    if state.form != "linear" or ndim(held) != 4 or _product(state.new) is None:
        return False
    if isinstance(state.change, Node) and tuple(shape(state.change)[2:]) != (1, 1):
        return False
    return _query(state) is not None


def _query(state: Recurrence) -> Node | None:
    """``query @ state``, which is all that is made of the state beside itself."""
    users = {user for item in state.through for user in item.users if user not in state.through}
    readers = [user for user in users if user.users and kind(user) != "sym_size"]
    if len(readers) != 1 or kind(readers[0]) != "matmul":
        return None
    query, read = readers[0].args
    return readers[0] if read in state.sums and ndim(query) == 4 and shape(query)[2] == 1 else None  # type: ignore[arg-type]


def _product(new: Any) -> tuple[Node, Node, list[Any]] | None:
    """A column and a row whose product it is, and what the product is multiplied by."""
    new = peel(new)
    if kind(new) not in ("matmul", "mul") or len(new.args) != 2:
        return None
    first, second = new.args
    if not all(isinstance(item, Node) and ndim(item) == 4 for item in (first, second)):
        return None
    if shape(first)[3] == 1 and shape(second)[2] == 1 and (kind(new) == "matmul" or 1 not in shape(new)[2:]):
        return first, second, []
    if kind(new) == "mul":
        for factor, rest in ((first, second), (second, first)):
            inner = _product(rest) if tuple(shape(factor)[2:]) == (1, 1) else None
            if inner is not None:
                return inner[0], inner[1], [*inner[2], factor]
            if shape(factor)[2] == 1 and shape(rest)[3] == 1 and 1 not in shape(new)[2:]:
                return rest, factor, []
    return None


def _without(edit: Editor, node: Any, axis: int) -> Node:
    """``node`` without an axis of size 1; what it was before that axis was put in."""
    if kind(node) == "unsqueeze" and node.args[1] % ndim(node) == axis:
        return node.args[0]  # type: ignore[no-any-return]
    return edit.call(_aten.squeeze.dim, node, axis)


def attend_linearly(state: Recurrence, place: tuple[Any, ...], captured: Any) -> None:
    """Put the whole in the place of the query's product; ``place``: its cache, slot, mask, and the tokens' number."""
    reader, product = _query(state), _product(state.new)
    assert reader is not None and product is not None
    edit = Editor(captured, reader)
    column, row, factors = product
    query = _without(edit, reader.args[0], 2)
    key, value = _without(edit, column, 3), _without(edit, row, 2)
    for factor in factors:
        key = edit.call(_aten.mul.Tensor, key, _without(edit, factor, 3))
    decay = state.change
    if isinstance(decay, Node):
        decay = _without(edit, _without(edit, decay, 3), 2)
    else:
        decay = edit.call(_aten.new_full.default, query, [1, 1], decay)
    fake = query.meta["val"]
    with fake.fake_mode:
        val = torch.empty((*fake.shape[:2], shape(value)[2]), dtype=fake.dtype)
    made = edit.call(token_ops.linear_attention, query, key, value, decay, *place, val=val)
    edit.replace(edit.call(_aten.unsqueeze.default, made, 2))
