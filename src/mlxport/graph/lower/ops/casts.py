"""Casts, what only moves or marks a tensor, and reading one value."""

from __future__ import annotations

from typing import Any

from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.ops.common import is_complex
from mlxport.graph.lower.registry import op


@op(
    "aten.alias.default",
    "aten.alias_copy.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.detach.default",
    "aten.detach_copy.default",
    "aten.lift.default",
    "aten.lift_fresh.default",
    "aten.lift_fresh_copy.default",
    "aten.resolve_conj.default",
    "aten.resolve_neg.default",
    "prims.clone.default",
)
def unchanged(self: Expr) -> Expr:
    """The tensor itself: MLX arrays are values, so nothing has to be copied."""
    return self


@op("prims.view_of.default")
def view_of(a: Expr) -> Expr:
    """The tensor itself."""
    return a


@op("aten._to_copy.default")
def to_copy(self: Expr, dtype: Any = None) -> Expr:
    """``self`` as ``dtype``."""
    return cast(self, dtype)


@op("prims.convert_element_type.default")
def convert_element_type(a: Expr, dtype: Any) -> Expr:
    """``a`` as ``dtype``."""
    return cast(a, dtype)


def cast(x: Expr, dtype: Any) -> Expr:
    """``x`` as ``dtype``; of complex numbers, the real part."""
    if dtype is None or x.dtype == dtype:
        return x
    if is_complex(x) and dtype not in (mx.complex64, mx.bool_):
        x = mx.real(x)
    return x if x.dtype == dtype else x.astype(dtype)


@op("aten._local_scalar_dense.default", "aten.item.default")
def item(self: Expr) -> Expr:
    """The one value as a Python number, read on the host."""
    if self.dtype == mx.bool_:
        value: bool | int | float | complex = True
    elif is_complex(self):
        value = 1.5 + 0.5j
    else:
        value = 1.5 if self.dtype in (mx.float32, mx.float16, mx.bfloat16) else 3
    result: Expr = self.item.called(value)
    result.dynamic = True
    return result


@op("aten.copy.default")
def copy(self: Expr, src: Expr) -> Expr:
    """``src`` in the shape and dtype of ``self``."""
    source = cast(src, self.dtype)
    return source if tuple(self.value.shape) == tuple(src.value.shape) else mx.broadcast_to(source, self.shape)
