"""New tensors of given or of another tensor's size."""

from __future__ import annotations

from typing import Any

import mlx.core as _mx

from mlxport.graph.lower import fused_ops
from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import creation as helpers
from mlxport.graph.lower.ops.common import HALF, shape_of
from mlxport.graph.lower.registry import call, fused, op, refuse


def _default_dtype(*numbers: Any) -> Any:
    values = [number.value if isinstance(number, Expr) else number for number in numbers]
    if all(isinstance(value, bool) for value in values):
        return mx.bool_
    if any(isinstance(value, complex) for value in values):
        return mx.complex64
    return mx.float32 if any(isinstance(value, float) for value in values) else mx.int64


def _number(value: Any, dtype: Any) -> Any:
    """``value`` as a person writes it in an array of ``dtype``."""
    if isinstance(value, Expr):
        return value
    if dtype == mx.bool_:
        return bool(value)
    if dtype in (mx.float32, mx.float16, mx.bfloat16):
        return float(value)
    return value if dtype == mx.complex64 else int(value)


def filled(size: Any, value: Any, dtype: Any) -> Expr:
    """``mx.zeros``, ``mx.ones`` or ``mx.full`` of ``size``."""
    value = _number(value, dtype)
    more = {} if dtype == mx.float32 else {"dtype": dtype}
    shape = size if isinstance(size, Expr) else tuple(size)
    if not isinstance(value, Expr) and value in (0, 1) and str(value) != "-0.0":
        return (mx.ones if value else mx.zeros)(shape, **more)
    if not isinstance(value, Expr) and mx.array(value).dtype == dtype:
        more = {}
    return mx.full(shape, value, **more)


def filled_like(x: Expr, value: Any, dtype: Any) -> Expr:
    """``filled`` in the shape of ``x``."""
    dtype = dtype or x.dtype
    number = _number(value, dtype)
    more = {} if dtype == x.dtype else {"dtype": dtype}
    if not isinstance(number, Expr) and number in (0, 1) and str(number) != "-0.0":
        return (mx.ones_like if number else mx.zeros_like)(x, **more)
    return filled(shape_of(x), value, dtype)


@op("aten.full.default")
def full(size: Any, fill_value: Any, dtype: Any = None) -> Expr:
    """A tensor of one value."""
    return filled(size, fill_value, dtype or _default_dtype(fill_value))


@op("aten.zeros.default")
def zeros(size: Any, dtype: Any = None) -> Expr:
    """Zeros."""
    return filled(size, 0, dtype or mx.float32)


@op("aten.ones.default")
def ones(size: Any, dtype: Any = None) -> Expr:
    """Ones."""
    return filled(size, 1, dtype or mx.float32)


@op("aten.full_like.default")
def full_like(self: Expr, fill_value: Any, dtype: Any = None) -> Expr:
    """One value in the shape of ``self``."""
    return filled_like(self, fill_value, dtype)


@op("aten.fill.Scalar")
def fill_scalar(self: Expr, value: Any) -> Expr:
    """``value`` in the shape and dtype of ``self``."""
    return filled_like(self, value, None)


@op("aten.fill.Tensor")
def fill_tensor(self: Expr, value: Expr) -> Expr:
    """``value`` in the shape and dtype of ``self``."""
    return mx.full(shape_of(self), value, dtype=self.dtype)


@op("aten.zeros_like.default", "aten.zero.default")
def zeros_like(self: Expr, dtype: Any = None) -> Expr:
    """Zeros in the shape of ``self``."""
    return filled_like(self, 0, dtype)


@op("aten.ones_like.default")
def ones_like(self: Expr, dtype: Any = None) -> Expr:
    """Ones in the shape of ``self``."""
    return filled_like(self, 1, dtype)


@op("aten.new_full.default")
def new_full(self: Expr, size: Any, fill_value: Any, dtype: Any = None) -> Expr:
    """A tensor of one value, of the dtype of ``self`` unless told."""
    return filled(size, fill_value, dtype or self.dtype)


@op("aten.new_zeros.default")
def new_zeros(self: Expr, size: Any, dtype: Any = None) -> Expr:
    """Zeros, of the dtype of ``self`` unless told."""
    return filled(size, 0, dtype or self.dtype)


@op("aten.new_ones.default")
def new_ones(self: Expr, size: Any, dtype: Any = None) -> Expr:
    """Ones, of the dtype of ``self`` unless told."""
    return filled(size, 1, dtype or self.dtype)


# Memory that is not initialised may hold anything: zeros.
@op("aten.empty.memory_format")
def empty(size: Any, dtype: Any = None) -> Expr:
    """Zeros: what torch leaves uninitialised may hold anything."""
    return filled(size, 0, dtype or mx.float32)


@op("aten.new_empty.default")
def new_empty(self: Expr, size: Any, dtype: Any = None) -> Expr:
    """Zeros: what torch leaves uninitialised may hold anything."""
    return filled(size, 0, dtype or self.dtype)


@op("aten.empty_like.default")
def empty_like(self: Expr, dtype: Any = None) -> Expr:
    """Zeros: what torch leaves uninitialised may hold anything."""
    return filled_like(self, 0, dtype)


@op("aten.empty_strided.default", "aten.empty_permuted.default")
def empty_strided(size: Any, stride: Any = None, physical_layout: Any = None, dtype: Any = None) -> Expr:
    """Zeros: strides say how torch lays out memory, which MLX decides by itself."""
    return filled(size, 0, dtype or mx.float32)


@op("aten.new_empty_strided.default")
def new_empty_strided(self: Expr, size: Any, stride: Any, dtype: Any = None) -> Expr:
    """Zeros: strides say how torch lays out memory, which MLX decides by itself."""
    return filled(size, 0, dtype or self.dtype)


@op("aten.scalar_tensor.default")
def scalar_tensor(s: Any, dtype: Any = None) -> Expr:
    """A number as a tensor without axes."""
    dtype = dtype or mx.float32
    number = _number(s, dtype)
    if isinstance(number, float | bool | complex) and dtype in (mx.float32, mx.bool_, mx.complex64):
        return mx.array(number)
    return mx.array(number, dtype)


@op("aten.arange.default")
def arange_end(end: Any, dtype: Any = None) -> Expr:
    """0, 1, ... below ``end``."""
    return arange(0, end, 1, dtype)


@op("aten.arange.start")
def arange_start(start: Any, end: Any, dtype: Any = None) -> Expr:
    """``start``, ``start + 1``, ... below ``end``."""
    return arange(start, end, 1, dtype)


@op("aten.arange.start_step")
def arange(start: Any, end: Any, step: Any = 1, dtype: Any = None) -> Expr:
    """``start``, ``start + step``, ... below ``end``."""
    if dtype is not None and dtype not in (mx.float32, *HALF):  # 2.0 counts like 2 there
        start, end, step = (int(n) if isinstance(n, float) and n.is_integer() else n for n in (start, end, step))
    whole = all(
        not isinstance(number.value if isinstance(number, Expr) else number, float) for number in (start, end, step)
    )
    dtype = dtype or (mx.int64 if whole else mx.float32)
    if not whole and dtype not in (mx.float32, *HALF):
        refuse(any(isinstance(number, Expr) for number in (start, end, step)), "an integer range with float ends")
        return call(helpers.truncated_arange, start, end, step, dtype=dtype)
    numbers = [end] if not isinstance(start, Expr) and start == 0 else [start, end]
    if isinstance(step, Expr) or step != 1:
        numbers = [start, end, step]
    if dtype in HALF:  # computed in float32, as torch does
        dtype = mx.float32
    return mx.arange(*numbers) if dtype == mx.float32 and not whole else mx.arange(*numbers, dtype=dtype)


@op("aten.linspace.default")
def linspace(start: Any, end: Any, steps: Any, dtype: Any = None) -> Expr:
    """``steps`` numbers from ``start`` to ``end``, both included."""
    more = {"dtype": dtype} if dtype is not None and not _mx.issubdtype(dtype, _mx.inexact) else {}
    return mx.linspace(start, end, steps, **more)


@op("aten.eye.default")
def eye(n: Any, dtype: Any = None) -> Expr:
    """The identity matrix."""
    return mx.eye(n) if dtype is None or dtype == mx.float32 else mx.eye(n, dtype=dtype)


@op("aten.eye.m")
def eye_m(n: Any, m: Any, dtype: Any = None) -> Expr:
    """Ones on the diagonal of an n by m matrix."""
    return mx.eye(n, m) if dtype is None or dtype == mx.float32 else mx.eye(n, m, dtype=dtype)


@fused(fused_ops.literal)
def literal(values: Any, dtype: Any) -> Expr:
    """``mx.array``."""
    return mx.array(values, dtype=dtype)
