"""Small rewrites of emitted expressions: what a person would not write twice in a row."""

from __future__ import annotations

import ast

__all__ = ["tidy"]


def tidy(tree: ast.expr) -> ast.expr:
    """``x[:, None][..., None]`` as ``x[:, None, ..., None]``, and ``x.T.T`` as ``x``."""
    result: ast.expr = _Tidy().visit(tree)
    return result


class _Tidy(ast.NodeTransformer):
    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:  # noqa: N802
        self.generic_visit(node)
        inner = node.value
        return inner.value if node.attr == "T" and isinstance(inner, ast.Attribute) and inner.attr == "T" else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.value, ast.Subscript):
            return node
        inner, outer = _items(node.value.slice), _items(node.slice)
        merged = _merged(inner, outer) if inner is not None and outer is not None else None
        if merged is None:
            return node
        return ast.Subscript(node.value.value, merged[0] if len(merged) == 1 else ast.Tuple(merged))


def _items(index: ast.expr) -> list[ast.expr] | None:
    """The parts of a subscript that only adds axes; None for another."""
    items = list(index.elts) if isinstance(index, ast.Tuple) else [index]
    return items if all(_is_none(item) or _is_all(item) or _is_ellipsis(item) for item in items) else None


def _is_none(item: ast.expr) -> bool:
    return isinstance(item, ast.Constant) and item.value is None


def _is_ellipsis(item: ast.expr) -> bool:
    return isinstance(item, ast.Constant) and item.value is ...


def _is_all(item: ast.expr) -> bool:
    return isinstance(item, ast.Slice) and item.lower is None and item.upper is None and item.step is None


def _merged(inner: list[ast.expr], outer: list[ast.expr]) -> list[ast.expr] | None:
    """One subscript for two that follow each other, where that does not depend on the number of axes."""
    if any(map(_is_ellipsis, inner)):
        return [*inner, *outer[1:]] if _is_ellipsis(outer[0]) and all(map(_is_none, outer[1:])) else None
    cut = next((i for i, item in enumerate(outer) if _is_ellipsis(item)), len(outer))
    before, after = outer[:cut], outer[cut + 1 :]
    if any(map(_is_all, after)):
        return None
    rest = list(inner)
    merged: list[ast.expr] = []
    for item in before:
        if _is_none(item):
            merged.append(item)
        else:
            merged.append(rest.pop(0) if rest else item)
    merged += rest
    if after:
        merged += [ast.Constant(...), *after]
    else:
        while merged and _is_all(merged[-1]):
            merged.pop()
    return merged or None
