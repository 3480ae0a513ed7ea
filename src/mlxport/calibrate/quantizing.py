"""From the statistics of a matrix's inputs to its packed weights, a block of rows or one expert at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxport.calibrate.moments import Experts, Moments
from mlxport.calibrate.weights import Rows
from mlxport.parity.tolerances import STORED_WEIGHT_BOUND, level, level_name
from mlxport.quant.feedback import Factor, correction, factor, feedback_affine
from mlxport.quant.search import pack
from mlxport.types import QuantSpec

__all__ = ["Prepared", "prepare", "quantize_experts", "quantize_matrix"]

DAMPING = 0.05  # of the second moments: 0.01 fits the text too well, 0.1 was worse at 4 bits
CORRECTION_DAMPING = 0.3
BLOCK = 1 << 22  # weights that are worked on at once
# An expert's own second moments are joined by those of all experts, weighing as many tokens as this share of columns.
SHARED = 0.25


@dataclass(frozen=True)
class Prepared:
    """The moments of a matrix's inputs, ready for its rows: a factor, and the correction for shifted inputs."""

    factor: Factor
    correction: mx.array | None


def prepare(moments: Moments, tied: bool = False) -> Prepared:
    """Factor the moments, and let go of them.

    Args:
        moments: Of the inputs.
        tied: The matrix is the table of embeddings too, whose error counts by itself: its columns weigh as much again.

    Raises:
        ValueError: They are not finite.
    """
    assert moments.hessian is not None
    hessian, cross = moments.hessian, moments.cross
    moments.hessian = moments.cross = None
    shift = correction(hessian, cross, CORRECTION_DAMPING) if cross is not None and not tied else None
    del cross
    prepared = Prepared(factor(hessian, 1.0 if tied else DAMPING), shift)
    mx.clear_cache()
    return prepared


def quantize_matrix(
    read: Rows, shape: tuple[int, int], prepared: Prepared, spec: QuantSpec, dtype: mx.Dtype
) -> tuple[list[mx.array], float, float]:
    """Packed weights, scales and biases of a matrix [rows, columns], its error and its power."""
    rows, columns = shape
    step = max(1, min(rows, BLOCK // columns))
    found, error, power = [], 0.0, 0.0
    for start in range(0, rows, step):
        weight = read(start, min(start + step, rows)).astype(mx.float32)
        if prepared.correction is not None:
            weight = _shifted(weight, weight @ prepared.correction, spec)
        part = feedback_affine(weight, prepared.factor, group_size=spec.group_size, bits=spec.bits, dtype=dtype)
        found.append([_packed(part.codes, spec), part.scales, part.biases])
        error, power = error + part.error, power + part.power
        mx.eval(found[-1])
        mx.clear_cache()
    return [mx.concatenate(list(parts)) for parts in zip(*found, strict=True)], error, power


def _shifted(weight: mx.array, shift: mx.array, spec: QuantSpec) -> mx.array:
    """Corrected rows, none by more than half of what verification lets a stored row differ from the original."""
    most = STORED_WEIGHT_BOUND[level_name(level(spec.mode, spec.bits))] / 2
    size, length = (mx.linalg.norm(x, axis=-1, keepdims=True) for x in (shift, weight))
    return weight + shift * mx.minimum(1.0, most * length / mx.maximum(size, 1e-30))


def _packed(codes: mx.array, spec: QuantSpec) -> mx.array:
    rows = codes.shape[0]
    return pack(codes.reshape(-1, spec.group_size), spec.bits).reshape(rows, -1).view(mx.uint32)


def quantize_experts(
    read: Rows, shape: tuple[int, ...], inputs: Experts, spec: QuantSpec, dtype: mx.Dtype
) -> tuple[list[mx.array], float, float]:
    """The same of a stack [experts, rows, columns]; experts that got few tokens lean on what all experts got."""
    experts, rows, columns = shape
    shared = inputs.shared() * (SHARED * columns)
    found, error, power = [], 0.0, 0.0
    for expert in range(experts):
        x = inputs.inputs(expert)
        hessian = shared if x is None else shared + x.T @ x
        prepared = Prepared(factor(hessian, DAMPING), None)
        matrix: Any = read(expert, expert + 1)[0]
        rows_of = lambda start, stop, matrix=matrix: matrix[start:stop]  # noqa: E731
        parts, lost, had = quantize_matrix(rows_of, (rows, columns), prepared, spec, dtype)
        found.append(parts)
        error, power = error + lost, power + had
        mx.clear_cache()
    return [mx.stack(list(parts)) for parts in zip(*found, strict=True)], error, power
