"""The calls of torch's operators of control flow, whose functions ``subgraphs`` writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from mlxport.graph.lower.expr import Expr
from mlxport.graph.lower.helpers import control_flow as helpers
from mlxport.graph.lower.registry import UnsupportedOp, call_host

__all__ = ["lower_control_flow"]


def lower_control_flow(node: Node, args: Sequence[Any], shadow: Any) -> Expr:
    """The call of the helper that does what the operator does.

    Args:
        node: The operator's.
        args: Its arguments, graphs as the names of their functions.
        shadow: Of its results.

    Raises:
        UnsupportedOp: There is none.
    """
    match str(node.target):
        case "cond":
            return call_host(helpers.call_one, shadow, *args[:3], *args[3])
        case "while_loop":
            return call_host(helpers.call_while, shadow, args[0], args[1], tuple(args[2]), *args[3])
        case "scan":
            return call_host(helpers.call_along, shadow, args[0], tuple(args[1]), tuple(args[2]), *args[3])
        case "map_impl":
            return call_host(helpers.call_rows, shadow, args[0], tuple(args[1]), *args[2])
        case "associative_scan":
            return call_host(helpers.call_pairs, shadow, args[0], tuple(args[1]), *args[2])
    raise UnsupportedOp("an operator on functions that has no lowering: write out what it computes")
