"""Stand-ins for what a graph cannot record, or records otherwise than Metal computes it.

On Metal ``mx.fast`` has a kernel each, where the CPU composes several operations; ``mx.quantize`` cannot be exported.
The stand-ins have the shapes, dtypes and inputs of the real ones, and nothing of their values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers import activations

from mlxport.quant import DEFAULT_MODE, is_linear, make_spec
from mlxport.transform import replacing
from mlxport.transform.cpu_experts import gather_mm_of_mlx

__all__ = ["recordable"]

# Head dimensions that Metal's attention computes without storing the scores (ScaledDotProductAttention::use_fallback in
# mlx/backend/metal/scaled_dot_product_attention.cpp), for many queries and for a few.
_FULL_HEADS = frozenset({64, 72, 80, 96, 128})
_VECTOR_HEADS = frozenset({(64, 64), (96, 96), (128, 128), (256, 256), (192, 128)})
_FEW_QUERIES = 8
_MOST_VECTOR_ROWS = 32


def _norm(x: mx.array, weight: mx.array | None = None, *others: Any, **_: Any) -> mx.array:
    return mx.abs(x) if weight is None else mx.multiply(x, weight)


def _like(x: mx.array, *_: Any, **__: Any) -> mx.array:
    return mx.abs(x)


def _is_fused(queries: mx.array, keys: mx.array, values: mx.array) -> bool:
    heads = (queries.shape[-1], values.shape[-1])
    if queries.shape[2] > _FEW_QUERIES:
        return heads[0] == heads[1] and heads[0] in _FULL_HEADS
    rows = queries.shape[2] * (queries.shape[1] // keys.shape[1])
    return heads in _VECTOR_HEADS and rows <= _MOST_VECTOR_ROWS and queries.shape[2] <= keys.shape[2]


def _attention(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def attend(q: mx.array, k: mx.array, v: mx.array, *arguments: Any, **settings: Any) -> mx.array:
        if not _is_fused(q, k, v):
            return original(q, k, v, *arguments, **settings)
        shape = (*q.shape[:-1], v.shape[-1])
        mask = settings.get("mask")
        reads = [mx.broadcast_to(part[:, :1, :1, :1], shape) for part in (k, v)]
        if isinstance(mask, mx.array):
            reads.append(mx.broadcast_to(mask[..., :1, :1], shape).astype(q.dtype))
        result = mx.broadcast_to(q[..., :1], shape)
        for read in reads:
            result = mx.maximum(result, read)
        return result

    return attend


def _quantize(w: mx.array, group_size: int | None = None, bits: int | None = None, *_: Any, **kw: Any) -> Any:
    spec = make_spec(kw.get("mode", DEFAULT_MODE), bits, group_size)
    if w.shape[-1] % spec.group_size:
        raise ValueError(f"last dimension {w.shape[-1]} is not a multiple of the group size {spec.group_size}")
    columns = w.shape[-1] * spec.bits // 32
    packed, groups = w[..., :columns].astype(mx.uint32), w[..., : w.shape[-1] // spec.group_size]
    if not is_linear(spec.mode):
        return packed, groups.astype(mx.uint8)
    return packed, mx.abs(groups), mx.sin(groups)


def _dequantize(
    w: mx.array, scales: mx.array, biases: Any = None, group_size: int | None = None, bits: int | None = None, *_: Any,
    **kw: Any,
) -> mx.array:  # fmt: skip
    spec = make_spec(kw.get("mode", DEFAULT_MODE), bits, group_size)
    shape = (*w.shape[:-1], w.shape[-1] * 32 // spec.bits)
    dtype = scales.dtype if mx.issubdtype(scales.dtype, mx.floating) else kw.get("dtype") or mx.bfloat16
    return mx.broadcast_to(w[..., :1], shape).astype(dtype) + mx.broadcast_to(scales[..., :1], shape).astype(dtype)


def _compiled(home: Any) -> list[str]:
    """Activations that MLX compiles to one operation, and that a graph would record as the several they are made of."""
    kind = type(mx.compile(mx.abs))
    return [name for name, value in vars(home).items() if type(value) is kind and name != "glu"]


@contextlib.contextmanager
def recordable(fused: bool) -> Iterator[None]:
    """Replace, for this thread, what MLX cannot record, and with ``fused`` what Metal has kernels for.

    The default device is the CPU meanwhile, so that a Mac records what any other machine does.
    """
    stand_ins: list[tuple[Any, str, Callable[..., Any]]] = [
        (mx, "quantize", _quantize),
        (mx, "dequantize", _dequantize),
        (mx, "contiguous", lambda a, *_, **__: a),
        (mx, "gather_mm", gather_mm_of_mlx()),  # a model opened before, in this process, may have replaced it
    ]
    stand_ins += [(home, name, _like) for home in (nn, activations) for name in _compiled(home)]
    if fused:
        attention = _attention(mx.fast.scaled_dot_product_attention)
        stand_ins += [(mx.fast, "rms_norm", _norm), (mx.fast, "layer_norm", _norm), (mx.fast, "rope", _like)]
        stand_ins += [(mx.fast, "scaled_dot_product_attention", attention)]

    with replacing(stand_ins):
        device = mx.default_device()
        mx.set_default_device(mx.cpu)
        try:
            yield
        finally:
            mx.set_default_device(device)
