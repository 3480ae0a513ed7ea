"""What is left of a mask that inputs take part in: the parts that depend on sizes alone are written briefly.

``causal & padding`` of transformers gathers the padding by ranges of numbers and compares ranges for the causal part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sympy
import torch
from torch.fx import Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.fused_ops import causal
from mlxport.graph.lower.traits import traits_of
from mlxport.graph.rewrite.fuse.fusion import Fusion
from mlxport.graph.rewrite.fuse.mask_forms import mask_form
from mlxport.graph.rewrite.fuse.values import CannotEvaluate, Values
from mlxport.graph.rewrite.graph_queries import Editor, kind, ndim, same_size, shape

__all__ = ["apply"]

_aten = torch.ops.aten


def apply(captured: Captured, values: Values) -> Iterable[Fusion]:
    """Simplify gathers that take everything in order, and conjunctions with masks that depend on sizes alone."""
    for node in list(captured.graph.nodes):
        if kind(node) == "index" and ndim(node) >= 2 and node not in values.static:
            _in_order(captured, node, values)
    for node in list(captured.graph.nodes):
        if traits_of(node).logic == "and" and node.users and node not in values.static and ndim(node) >= 2:
            _conjunction(captured, node, values)
    return ()


def _in_order(captured: Captured, node: Node, values: Values) -> None:
    """``x[ranges]`` that gives every element of ``x`` in order: ``x`` with more axes."""
    source, indices = node.args
    if any(not isinstance(item, Node) or item not in values.static for item in indices):
        return
    if len(indices) != ndim(source) or node.meta["val"].dtype.is_complex:
        return
    found = _new_axes(shape(source), shape(node))
    if found is None:
        return
    axes, cut = found
    try:
        for sizes in values.sizes():
            for before, after in cut.values():  # more than is taken
                sizes[before] = Values.number(after, sizes) + 2
            x = values.random(source, sizes)
            (got,) = values.run([node], {source: x}, sizes)
            for axis, (_, after) in cut.items():
                x = x.narrow(axis, 0, Values.number(after, sizes))
            for axis in axes:
                x = x.unsqueeze(axis)
            if got.shape != x.shape or not torch.equal(got, x):
                return
    except CannotEvaluate:
        return
    edit = Editor(captured, node)
    for axis, (_, after) in cut.items():
        end = edit.known_size(after)
        val = source.meta["val"]
        with val.fake_mode:
            sizes_after = [after if index == axis else size for index, size in enumerate(val.shape)]
            cut_val = torch.empty(sizes_after, dtype=val.dtype, device=val.device)
        source = edit.call(_aten.slice.Tensor, source, axis, 0, end, val=cut_val)
    for axis in axes:
        source = edit.call(_aten.unsqueeze.default, source, axis)
    edit.replace(source)


def _new_axes(
    before: tuple[Any, ...], after: tuple[Any, ...]
) -> tuple[list[int], dict[int, tuple[sympy.Symbol, Any]]] | None:
    """Where axes of size 1 are added to make one shape of another, and the axes of which only a beginning is taken."""
    axes: list[int] = []
    cut: dict[int, tuple[sympy.Symbol, Any]] = {}
    position = 0
    for axis, size in enumerate(after):
        if isinstance(size, int) and size == 1:
            axes.append(axis)
        elif position == len(before):
            return None
        else:
            own = before[position]
            if not same_size(own, size):
                if isinstance(own, int) or isinstance(size, int) or not own.node.expr.is_Symbol:
                    return None
                cut[position] = (own.node.expr, size)
            position += 1
    return (axes, cut) if position == len(before) else None


def _conjunction(captured: Captured, node: Node, values: Values) -> None:
    """``known & given``: without what is always true, a triangle as one."""
    if node.meta["val"].dtype is not torch.bool:
        return
    lengths = shape(node)[-2], shape(node)[-1]
    for position, item in enumerate(node.args[:2]):
        if not isinstance(item, Node) or item not in values.static or item.target is causal:
            continue
        other = node.args[1 - position]
        found = mask_form(item, values, lengths)
        edit = Editor(captured, node)
        masks = all(kind(user) == "scaled_dot_product_attention" for user in node.users)
        if (
            found == "none"
            and isinstance(other, Node)
            and (_covers(other, node) or masks and ndim(other) == ndim(node))
        ):
            edit.replace(other)
            return
        if found == "causal":
            rows, columns = (edit.size(node, axis) for axis in (ndim(node) - 2, ndim(node) - 1))
            with node.meta["val"].fake_mode:
                val = torch.empty(lengths, dtype=torch.bool, device=node.meta["val"].device)
            made = edit.call(causal, rows, columns, val=val)
            node.args = tuple(made if index == position else arg for index, arg in enumerate(node.args))
            return


def _covers(other: Node, node: Node) -> bool:
    own, wanted = shape(other), shape(node)
    return len(own) == len(wanted) and all(map(same_size, own, wanted))
