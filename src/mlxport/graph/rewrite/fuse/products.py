"""Products of two tensors with a letter for each axis: matmul, bmm, baddbmm and einsum in one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from mlxport.graph.rewrite.graph_queries import kind, ndim, shape

__all__ = ["Contraction", "contraction"]

_BATCH = "abcdefgh"


@dataclass(frozen=True)
class Contraction:
    """``node = einsum("left,right->result", a, b)``, plus ``added`` where that is given, times ``alpha`` and ``beta``.

    Letters of axes that are broadcast (size 1 here, more in the result) are in ``thin`` (for a, for b).
    """

    node: Node
    a: Node
    b: Node
    left: str
    right: str
    result: str
    thin: tuple[frozenset[str], frozenset[str]]
    added: Node | None = None
    alpha: Any = 1
    beta: Any = 1


def contraction(node: Any) -> Contraction | None:
    """The product that ``node`` is, if it sums over one axis."""
    name = kind(node)
    if name in ("matmul", "linalg_matmul", "bmm", "mm"):
        return _matmul(node, node.args[0], node.args[1])
    if name == "baddbmm":
        given = dict(zip(("self", "batch1", "batch2", "beta", "alpha"), node.args, strict=False)) | dict(node.kwargs)
        return _matmul(
            node, given["batch1"], given["batch2"], given["self"], given.get("alpha", 1), given.get("beta", 1)
        )
    if name == "einsum" and len(node.args[1]) == 2:
        return _einsum(node, node.args[0], *node.args[1])
    return None


def _matmul(
    node: Node, a: Node, b: Node, added: Node | None = None, alpha: Any = 1, beta: Any = 1
) -> Contraction | None:
    ranks = ndim(a), ndim(b)
    if min(ranks) < 2:
        return None
    lead = _BATCH[: max(ranks) - 2]
    left = lead[len(lead) - (ranks[0] - 2) :] + "ix"
    right = lead[len(lead) - (ranks[1] - 2) :] + "xj"
    return _made(node, a, b, left, right, lead + "ij", added, alpha, beta)


def _einsum(node: Node, equation: str, a: Node, b: Node) -> Contraction | None:
    equation = equation.replace(" ", "")
    if "->" not in equation:
        return None
    if "..." in equation:
        expanded = _ellipsis(equation, ndim(a), ndim(b))
        if expanded is None:
            return None
        equation = expanded
    inputs, _, result = equation.partition("->")
    left, right = inputs.split(",")
    if any(len(set(term)) != len(term) for term in (left, right, result)):
        return None
    summed = (set(left) & set(right)) - set(result)
    if len(summed) != 1 or (set(left) | set(right)) - set(result) != summed:
        return None
    return _made(node, a, b, left, right, result)


def _ellipsis(equation: str, *ranks: int) -> str | None:
    """The equation with letters for its dots, which must stand for the same number of axes wherever they are."""
    inputs, _, result = equation.partition("->")
    terms = inputs.split(",")
    counts = {rank - len(term) + 3 for term, rank in zip(terms, ranks, strict=True) if "..." in term}
    if len(counts) != 1 or "..." not in result:
        return None
    free = [letter for letter in "ABCDEFGH" if letter not in equation][: counts.pop()]
    return equation.replace("...", "".join(free))


def _made(
    node: Node,
    a: Node,
    b: Node,
    left: str,
    right: str,
    result: str,
    added: Node | None = None,
    alpha: Any = 1,
    beta: Any = 1,
) -> Contraction:
    sizes = dict(zip(result, shape(node), strict=True))
    thin = tuple(
        frozenset(
            letter
            for letter, size in zip(term, shape(item), strict=True)
            if letter in sizes and isinstance(size, int) and size == 1 and sizes[letter] != 1
        )
        for term, item in ((left, a), (right, b))
    )
    return Contraction(node, a, b, left, right, result, (thin[0], thin[1]), added, alpha, beta)
