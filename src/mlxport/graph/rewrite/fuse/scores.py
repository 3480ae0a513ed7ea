"""From the input of an attention's softmax back to the product of queries and keys: its scale and masks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from mlxport.graph.lower.traits import View, traits_of
from mlxport.graph.rewrite.fuse.products import Contraction, contraction
from mlxport.graph.rewrite.fuse.values import Values
from mlxport.graph.rewrite.graph_queries import is_cast, kind, ndim, same_size, shape

__all__ = ["Declined", "Mask", "Scores", "find_scores"]

LARGE = -1e4  # what is below is meant to vanish in a softmax


class Declined(Exception):
    """Why what looks like attention is not fused."""


@dataclass
class Mask:
    """A mask on the scores.

    Attributes:
        node: Truth values, or what is added to the scores.
        visible: For truth values: which one lets a key be seen; None for what is added.
        factor: What an added mask is multiplied with.
        fill: What hidden scores become.
    """

    node: Node
    visible: bool | None = None
    factor: float = 1.0
    fill: float = -math.inf


@dataclass
class Scores:
    """``product * scale`` under masks; ``widest`` is the node with the most axes between product and softmax.

    ``sinks`` is a column of scores without keys.
    """

    product: Contraction
    scale: float
    widest: Node
    masks: list[Mask] = field(default_factory=list)
    viewed: bool = False
    sinks: Node | None = None


def find_scores(node: Any, values: Values, depth: int = 0) -> Scores | None:
    """The scores that ``node`` is, None if no product of two tensors is found.

    Raises:
        Declined: if a product is found under something that ``mx.fast.scaled_dot_product_attention`` does not compute.
    """
    if not isinstance(node, Node) or depth > 14:
        return None
    product = contraction(node)
    if product is not None:
        if _uses(node) > 1:
            raise Declined("the scores are used elsewhere")
        return _product(product, values)
    rule = _viewed if traits_of(node).view is View.RESHAPED else _cast if is_cast(node) else _RULES.get(kind(node))
    found = rule(node, values, depth + 1) if rule is not None else None
    if found is None:
        return None
    if depth and _uses(node) > 1:
        raise Declined("the scores are used elsewhere")
    if ndim(node) > ndim(found.widest):
        found.widest = node
    return found


def _uses(node: Node) -> int:
    """How many use the scores, their maximum that is taken off left out."""
    return sum(kind(user) not in ("amax", "max") for user in node.users)


def _product(product: Contraction, values: Values) -> Scores | None:
    alpha = values.scalar(product.alpha)
    beta = values.scalar(product.beta)
    if alpha is None or beta is None or alpha <= 0:
        return None
    scores = Scores(product, alpha, product.node)
    if product.added is not None and beta:
        scores.masks.append(Mask(product.added, factor=beta))
    return scores


def _cast(node: Node, values: Values, depth: int) -> Scores | None:
    return find_scores(node.args[0], values, depth)


def _scaled(node: Node, values: Values, depth: int) -> Scores | None:
    """A product with a number, or a quotient."""
    for item, other in (node.args[:2], node.args[1::-1]):
        number = values.scalar(other)
        if kind(node) == "div" and item is not node.args[0]:
            return None
        found = find_scores(item, values, depth) if number != 0 or number is None else None
        if found is None:
            continue
        if number is None:
            raise Declined("the scores are scaled by a tensor")
        factor = number if kind(node) == "mul" else 1 / number
        if factor <= 0:
            raise Declined("the scores are scaled by a negative number")
        found.scale *= factor
        for mask in found.masks:
            mask.factor *= factor
        return found
    return None


def _added(node: Node, values: Values, depth: int) -> Scores | None:
    """A mask or bias that is added."""
    if node.kwargs.get("alpha", 1) != 1:
        return None
    reason: Declined | None = None
    for position, item in enumerate(node.args[:2]):
        other = node.args[1 - position]
        if kind(node) == "sub" and position:
            continue
        try:
            found = find_scores(item, values, depth)
        except Declined as error:
            reason = error
            continue
        if found is None:
            continue
        if kind(node) == "sub" and kind(other) in ("amax", "max", "getitem"):
            return found if _is_maximum(other, item) else None
        if not isinstance(other, Node):
            return found  # a number on all scores does not change their softmax
        if ndim(other) > ndim(node):
            return None
        found.masks.append(Mask(other, factor=-1.0 if kind(node) == "sub" else 1.0))
        return found
    if reason is not None:
        raise reason
    return None


def _is_maximum(node: Any, of: Any) -> bool:
    source = node.args[0] if kind(node) == "getitem" else node
    return bool(source.args[0] is of)


def _where(node: Node, values: Values, depth: int) -> Scores | None:
    condition, yes, no = node.args
    for item, other, visible in ((yes, no, True), (no, yes, False)):
        found = find_scores(item, values, depth)
        if found is not None:
            return _hidden(found, condition, visible, values.scalar(other))
    return None


def _masked_fill(node: Node, values: Values, depth: int) -> Scores | None:
    found = find_scores(node.args[0], values, depth)
    return None if found is None else _hidden(found, node.args[1], False, values.scalar(node.args[2]))


def _hidden(found: Scores, condition: Node, visible: bool, fill: float | None) -> Scores:
    if fill is None or fill > LARGE:
        raise Declined("masked scores are replaced by something else than a large negative number")
    found.masks.append(Mask(condition, visible, fill=fill))
    return found


def _floored(node: Node, values: Values, depth: int) -> Scores | None:
    """``maximum(scores, finfo.min)``, which only keeps masked scores finite."""
    low = values.scalar(node.args[1]) if len(node.args) > 1 else None
    if low is None or low > -1e30 or len(node.args) > 2 and node.args[2] is not None:
        return None
    return find_scores(node.args[0], values, depth)


def _viewed(node: Node, values: Values, depth: int) -> Scores | None:
    """Axes before the last two split or merged."""
    before, after = shape(node.args[0]), shape(node)
    if min(len(before), len(after)) < 2 or not all(map(same_size, before[-2:], after[-2:])):
        return None
    found = find_scores(node.args[0], values, depth)
    if found is not None:
        found.viewed = True
    return found


def _capped(node: Node, values: Values, depth: int) -> Scores | None:
    if find_scores(node.args[0], values, depth) is not None:
        raise Declined("the scores are capped by tanh, which mx.fast.scaled_dot_product_attention does not do")
    return None


def _joined(node: Node, values: Values, depth: int) -> Scores | None:
    """Scores with a column of sinks behind them, which takes a share of the weights and gives nothing."""
    parts = node.args[0]
    found = find_scores(parts[0], values, depth)
    if found is None:
        return None
    last = ndim(node) - 1
    if len(parts) != 2 or node.args[1:] not in ((last,), (-1,)) or shape(parts[1])[-1] != 1 or found.sinks is not None:
        raise Declined("the scores have more columns than there are keys")
    found.sinks = parts[1]
    return found


_RULES: dict[str, Any] = {
    "mul": _scaled,
    "div": _scaled,
    "add": _added,
    "sub": _added,
    "where": _where,
    "masked_fill": _masked_fill,
    "maximum": _floored,
    "clamp": _floored,
    "clamp_min": _floored,
    "tanh": _capped,
    "cat": _joined,
}
