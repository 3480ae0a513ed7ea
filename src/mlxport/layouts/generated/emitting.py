"""A module captured and written as MLX source; what stands in the way is told in the user's terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mlxport.errors import UnsupportedError, UsageError
from mlxport.graph.build import Port, build
from mlxport.graph.capture.examples import Example
from mlxport.graph.capture.export import CaptureError, capture
from mlxport.graph.capture.origin import module_path, place
from mlxport.graph.lower.lowering import Missing
from mlxport.graph.lower.one_function import MissingOps

__all__ = ["emit", "missing"]


def emit(
    module: torch.nn.Module,
    example: Example,
    *,
    dynamic: bool | Any = True,
    fold_batchnorm: bool = False,
    model_type: str = "",
    title: str = "",
    fields_at: Sequence[str] = (),
    has_values: bool = False,
) -> Port:
    """Capture ``module`` on ``example`` and write its MLX source; arguments as of ``capture`` and ``build``."""
    try:
        captured = capture(module, example.args, example.kwargs, dynamic=dynamic, has_values=has_values)
    except CaptureError as error:
        raise (UsageError if error.usage else UnsupportedError)(str(error), hint=error.hint) from error
    try:
        return build(captured, title=title, model_type=model_type, batchnorm=fold_batchnorm, fields_at=fields_at)
    except MissingOps as error:
        raise missing(error.missing) from None


def missing(found: tuple[Missing, ...]) -> UnsupportedError:
    """What is said of ops that have no lowering."""
    lines = []
    for item in found:
        node = item.nodes[0]
        count = f"{len(item.nodes)} times" if len(item.nodes) > 1 else "once"
        where = module_path(node) or "the root module"
        reason = f": {item.reason}" if item.reason else ""
        lines.append(f"  {item.key}{reason} ({count}; first in {where}, {place(node) or 'unknown line'})")
    hint = 'say how MLX computes it: @mlxport.register_op("namespace::op") above a function on mx.arrays'
    return UnsupportedError("no MLX lowering for:\n" + "\n".join(lines), hint=hint)
