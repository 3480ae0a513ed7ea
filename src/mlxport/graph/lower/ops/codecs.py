"""Operators of codecs of sound: calls of helpers."""

from __future__ import annotations

from typing import Any

from mlxport.graph.lower import codec_ops as _codec_ops  # noqa: F401  (makes the operators)
from mlxport.graph.lower.expr import Expr
from mlxport.graph.lower.helpers import codecs as helper
from mlxport.graph.lower.registry import call, channels_last, op

_MODES = {"constant": "constant", "replicate": "edge", "reflect": "reflect"}


@channels_last("mlxport.pad_to_strides.default", inputs=("x",))
def pad_to_strides(x: Expr, kernel: int, stride: int, causal: bool, mode: str) -> Expr:
    """``pad_to_strides(x, 7, stride=2, mode="reflect")``."""
    options: dict[str, Any] = {} if stride == 1 else {"stride": stride}
    if not causal:
        options["causal"] = False
    if mode != "constant":
        options["mode"] = _MODES[mode]
    return call(helper.pad_to_strides, x, kernel, **options)


@op("mlxport.nearest_row.default")
def nearest_row(x: Expr, codebook: Expr) -> Expr:
    """``nearest_row(x, codebook)``."""
    return call(helper.nearest_row, x, codebook)
