"""Softmax and its logarithm."""

from __future__ import annotations

from typing import Any

from mlxport.graph.lower.expr import Expr, mx, nn
from mlxport.graph.lower.ops.common import HALF, accurate
from mlxport.graph.lower.registry import op


@op("aten.softmax.int", "aten.special_softmax.default")
def softmax(self: Expr, dim: int, dtype: Any = None) -> Expr:
    """Softmax along one axis; halves add up in float32."""
    x = self if dtype is None or dtype == self.dtype else self.astype(dtype)
    if self.ndim == 0:
        return mx.ones_like(x)
    return mx.softmax(x, axis=dim, precise=True) if x.dtype in HALF else mx.softmax(x, axis=dim)


@op("aten._softmax.default")
def _softmax(self: Expr, dim: int, half_to_float: bool) -> Expr:
    """Softmax along one axis, in float32 if ``half_to_float``."""
    return softmax(self, dim, mx.float32 if half_to_float else None)


@op("aten.log_softmax.int", "aten.special_log_softmax.default")
def log_softmax(self: Expr, dim: int, dtype: Any = None) -> Expr:
    """The logarithm of softmax along one axis, computed in float32."""
    x = accurate(self if dtype is None or dtype == self.dtype else self.astype(dtype))
    if self.ndim == 0:
        return mx.zeros_like(x)
    if isinstance(self.size, int) and self.size == 0:
        return x
    return nn.log_softmax(x, axis=dim)


@op("aten._log_softmax.default")
def _log_softmax(self: Expr, dim: int, half_to_float: bool) -> Expr:
    """The logarithm of softmax along one axis, in float32 if ``half_to_float``."""
    return log_softmax(self, dim, mx.float32 if half_to_float else None)
