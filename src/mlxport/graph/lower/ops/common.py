"""What several families of lowerings share: reduced axes, scalars, dtypes that add up without loss."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import mlx.core as _mx

from mlxport.graph.lower.expr import Expr, mx

__all__ = [
    "COMPLEX",
    "FLOATS",
    "HALF",
    "INTEGERS",
    "accurate",
    "axes",
    "fitting",
    "is_complex",
    "is_float",
    "is_integer",
    "reduced",
    "shape_of",
    "to_float",
    "widened",
]

HALF = (mx.float16, mx.bfloat16)
FLOATS = (mx.float32, *HALF)
COMPLEX = (mx.complex64,)
_SIGNED = (mx.int8, mx.int16, mx.int32, mx.int64)
_UNSIGNED = (mx.uint8, mx.uint16, mx.uint32, mx.uint64)
INTEGERS = (*_SIGNED, *_UNSIGNED)


def is_float(x: Any) -> bool:
    """Whether ``x`` is a real floating-point array."""
    return isinstance(x, Expr) and isinstance(x.value, _mx.array) and x.dtype in FLOATS


def is_complex(x: Any) -> bool:
    """Whether ``x`` is a complex array."""
    return isinstance(x, Expr) and isinstance(x.value, _mx.array) and x.dtype in COMPLEX


def is_integer(x: Any) -> bool:
    """Whether ``x`` is an array of integers (bool is none)."""
    return isinstance(x, Expr) and isinstance(x.value, _mx.array) and x.dtype in INTEGERS


def fitting(scalar: Any, like: Any) -> Any:
    """A Python integer as an array of the dtype of ``like`` holds it: it wraps as in torch, where MLX raises."""
    if not is_integer(like) or not isinstance(scalar, int) or isinstance(scalar, bool):
        return scalar
    bits = 8 * like.dtype.size
    wrapped = scalar % 2**bits
    return wrapped - 2**bits if like.dtype in _SIGNED and wrapped >= 2 ** (bits - 1) else wrapped


def axes(x: Expr, dim: Any) -> int | tuple[int, ...] | None:
    """Axes to reduce, as MLX takes them; None for all (no or empty ``dim``, or no axis at all)."""
    if dim is None or x.ndim == 0 or (isinstance(dim, Sequence) and not dim):
        return None
    if isinstance(dim, Sequence):
        return int(dim[0]) if len(dim) == 1 else tuple(dim)
    return int(dim)


def reduced(x: Expr, dim: Any, keepdim: bool = False) -> dict[str, Any]:
    """``axis`` and ``keepdims`` of a reduction of ``x``, without defaults."""
    axis = axes(x, dim)
    arguments: dict[str, Any] = {} if axis is None else {"axis": axis}
    if keepdim and x.ndim:
        arguments["keepdims"] = True
    return arguments


def widened(x: Expr, dtype: Any = None) -> Expr:
    """``x`` in the dtype in which torch adds it up: halves in float32, integers in int64."""
    wanted = x.dtype if dtype is None else dtype
    if wanted in HALF:
        wanted = mx.float32
    elif wanted in INTEGERS and wanted != mx.uint64:
        wanted = mx.int64
    return x if x.dtype == wanted else x.astype(wanted)


def accurate(x: Expr) -> Expr:
    """``x`` in float32 if it is a half or an integer: torch computes inside in float32."""
    return x if x.dtype == mx.float32 or x.dtype in COMPLEX else x.astype(mx.float32)


def to_float(x: Any) -> Any:
    """``x`` as a floating-point array, which integers and bools become in float functions."""
    return x.astype(mx.float32) if isinstance(x, Expr) and (is_integer(x) or x.dtype == mx.bool_) else x


def shape_of(x: Expr) -> Expr:
    """``x.shape``."""
    return Expr(ast.Attribute(x.node, "shape"), tuple(x.value.shape), dynamic=x.dynamic)
