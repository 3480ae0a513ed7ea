"""Fusions: what a model spells out in many ops and MLX has in one. One module each, with its test.

A fusion finds its places by structure, computes them with torch to be sure of what they compute (``values``), and
rewrites the graph to an ATen op or to one of ``lower.fused_ops``.

Imports: graph.lower, graph.capture, graph.rewrite.
"""

from __future__ import annotations

import importlib
from typing import Any

from mlxport.graph.rewrite.fuse.fusion import Fusion

__all__ = ["FUSIONS", "Fusion", "fuse"]

# The files, in the order in which they are applied.
FUSIONS = ("scattered_parts", "activation_functions", "rms_norm", "layer_norm", "linear_layers", "moe_loops", "moe",
           "rope", "scaled_dot_product", "known_masks")  # fmt: skip


def fuse(captured: Any, folds: dict[str, Any] | None = None) -> list[Fusion]:
    """Apply every fusion to the graph, in order; says what was done and what was not.

    Args:
        captured: The captured program; its graph is rewritten.
        folds: Constants that were folded before, by name; a fusion may add to them.
    """
    from mlxport.graph.rewrite.fuse.values import Values
    from mlxport.graph.rewrite.graph_queries import merge_views

    results: list[Fusion] = []
    folds = {} if folds is None else folds
    for name in FUSIONS:
        apply = importlib.import_module(f"{__name__}.{name}").apply
        results.extend(apply(captured, Values(captured, folds)))
        captured.graph.eliminate_dead_code()
    merge_views(captured.graph)
    alive = set(captured.graph.nodes)
    captured.weights = {node: name for node, name in captured.weights.items() if node in alive}
    return results
