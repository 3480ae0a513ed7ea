"""The expressions of what stands for loops in a graph. ``for`` itself is written by ``for_loops``."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import mlx.core as _mx
import torch
from torch.fx import Node

from mlxport.graph.lower import loop_ops, symbolic_sizes
from mlxport.graph.lower.expr import Expr, mx, to_ast
from mlxport.graph.lower.lowering import hint, mx_dtype, symbolic

__all__ = ["lower_loop_op"]


def lower_loop_op(node: Node) -> Expr:
    """The expression of a node of ``loop_ops``.

    Of one that stands for the loop itself it is what the loop is given there: ``(range(L), start, …)`` of ``steps``,
    what is handed on, collected or left, and nothing of ``carried``.
    """
    given = [_resolved(item) for item in node.args]
    match node.target:
        case loop_ops.steps:
            return Expr(ast.Tuple([_range(*node.meta["range"]), *(to_ast(start) for start in given[1:])]), None)
        case loop_ops.carried:
            return _like(node, ast.Constant(None))
        case loop_ops.handed_on | loop_ops.left | loop_ops.collected:
            return _like(node, to_ast(given[0]))
        case loop_ops.part:
            values, first, last, step = given
            return _like(node, ast.Subscript(values.node, _kept(first, last, step)))
        case loop_ops.item:
            return _like(node, ast.Subscript(given[0].node, to_ast(given[1])))
    values, lists, axis = given
    listed = _listed(values, lists)
    function = mx.stack if node.target is loop_ops.stacked else mx.concatenate
    made: Expr = function.called(_shadow(node), Expr(listed, None), axis=axis % node.meta["val"].ndim)
    if not axis % node.meta["val"].ndim:
        made.node.keywords = []  # type: ignore[attr-defined]
    return made


def _range(first: Any, end: Any, step: int) -> ast.expr:
    """``range(L)``, ``range(1, L)``, ``reversed(range(L))``."""
    size = [_size(item) for item in (first, end)]
    if step == -1 and _is(end, -1):
        return ast.Call(ast.Name("reversed"), [ast.Call(ast.Name("range"), [_size(first + 1)], [])], [])
    given = size[1:] if step == 1 and _is(first, 0) else size if step == 1 else [*size, to_ast(step)]
    return ast.Call(ast.Name("range"), given, [])


def _is(size: Any, number: int) -> bool:
    return bool(size == number) if isinstance(size, int) else bool(size.node.expr == number)


def _size(size: Any) -> ast.expr:
    return to_ast(size) if isinstance(size, int) else symbolic_sizes.placeholder(size)


def _listed(values: Sequence[Expr], lists: Sequence[bool]) -> ast.expr:
    """``ys``, or ``[x, *ys]``."""
    if len(values) == 1 and lists[0]:
        return values[0].node
    return ast.List([ast.Starred(item.node) if many else item.node for item, many in zip(values, lists, strict=True)])


def _kept(first: Any, last: Any, step: int) -> ast.Slice:
    """The slice of a list without its ends; backwards, it is counted from its last element."""
    front, back = first or None, -last if last else None
    ends = (front, back) if step == 1 else (-1 - last if last else None, first - 1 if first else None)
    return ast.Slice(*(None if end is None else to_ast(end) for end in (*ends, None if step == 1 else step)))


def _like(node: Node, tree: ast.expr) -> Expr:
    return Expr(tree, _shadow(node), dynamic=True)


def _shadow(node: Node) -> Any:
    value = node.meta["val"]
    return _mx.zeros(tuple(map(hint, value.shape)), mx_dtype(value.dtype)) if isinstance(value, torch.Tensor) else None


def _resolved(item: Any) -> Any:
    if isinstance(item, list | tuple):
        return [_resolved(part) for part in item]
    return symbolic(item) if isinstance(item, Node) else item
