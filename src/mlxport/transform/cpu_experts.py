"""Products with matrices of experts in half precision on the CPU, where MLX has them in float32 only.

Metal and CUDA compute them as they are. A converted mixture of experts is to run everywhere, so that on the CPU
``mx.gather_mm`` is given float32, and its result is rounded to what it would have been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

__all__ = ["gather_mm_of_mlx", "half_precision_experts", "remarked"]

_REMARK = (
    "MLX multiplies the matrices of experts in float32 only on the CPU: that is done here, and its results are rounded "
    "to the model's dtype"
)
_HALF = (mx.bfloat16, mx.float16)
_state = {"products": 0, "said": 0}


def half_precision_experts() -> None:
    """From now on ``mx.gather_mm`` takes half precision on the CPU too; elsewhere and in float32 it is as it was."""
    if getattr(mx.gather_mm, "__wrapped__", None) is None:
        mx.gather_mm = _in_float32(mx.gather_mm)  # type: ignore[assignment]


def gather_mm_of_mlx() -> Callable[..., mx.array]:
    """``mx.gather_mm`` as MLX has it, which is what a GPU runs: for who records a graph to plan for one."""
    return getattr(mx.gather_mm, "__wrapped__", mx.gather_mm)


@contextmanager
def remarked(say: Callable[[str], object]) -> Iterator[None]:
    """Tell once, after the work in here, that experts are computed in float32, if they were.

    Args:
        say: Called with the remark.
    """
    before = _state["products"]
    yield
    if not _state["said"] and _state["products"] != before:
        _state["said"] = 1
        say(_REMARK)


def _in_float32(gather_mm: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def call(
        a: mx.array,
        b: mx.array,
        /,
        lhs_indices: mx.array | None = None,
        rhs_indices: mx.array | None = None,
        **options: Any,
    ) -> mx.array:
        if not _on_cpu(options.get("stream")) or not (a.dtype in _HALF or b.dtype in _HALF):
            return gather_mm(a, b, lhs_indices, rhs_indices, **options)
        _state["products"] += 1
        dtype = mx.result_type(a, b)
        if rhs_indices is not None and rhs_indices.size < math.prod(b.shape[:-2]):
            # One token needs few of many experts: only theirs are copied.
            b = mx.take(b.reshape(-1, *b.shape[-2:]), rhs_indices.reshape(-1), axis=0)
            rhs_indices = mx.arange(rhs_indices.size, dtype=mx.uint32).reshape(rhs_indices.shape)
        a, b = a.astype(mx.float32), b.astype(mx.float32)
        return gather_mm(a, b, lhs_indices, rhs_indices, **options).astype(dtype)

    call.__wrapped__ = gather_mm  # type: ignore[attr-defined]
    return call


def _on_cpu(stream: Any) -> bool:
    """Whether this goes to the CPU: a stream or a device says so, or the default one."""
    device = mx.default_device() if stream is None else getattr(stream, "device", stream)
    kind = getattr(device, "type", device)
    return bool(kind == mx.cpu)
