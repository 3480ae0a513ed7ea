"""From the statistics of a matrix's inputs to its packed weights, a block of rows or one expert at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

import mlx.core as mx

from mlxport.calibrate.moments import Experts, Moments, column_ranges
from mlxport.quant.feedback import Factor, correction, factor, feedback_affine
from mlxport.quant.search import pack
from mlxport.types import QuantSpec

__all__ = ["Packed", "Rows", "beside", "joined", "prepared", "quantize_columns", "quantize_experts"]

Rows = Callable[[int, int], mx.array]  # of a matrix, from the first to before the last

DAMPING = 0.05  # of the second moments: 0.01 fits the text too well, 0.1 was worse at 4 bits
CORRECTION_DAMPING = 0.3
BLOCK = 1 << 22  # weights that are worked on at once
# An expert's own second moments are joined by those of all experts, weighing as many tokens as this share of columns.
SHARED = 0.25


@dataclass(frozen=True)
class Packed:
    """A matrix, or some of its columns, as it is stored.

    Attributes:
        arrays: Packed weights, scales and biases, each [..., columns of its own].
        error: Of the outputs, squared and summed up.
        power: Of the outputs themselves.
    """

    arrays: list[mx.array]
    error: float
    power: float


def joined(parts: Sequence[Packed], join: Callable[[list[mx.array]], mx.array]) -> Packed:
    """Parts as one, evaluated."""
    arrays = [join(list(each)) for each in zip(*(part.arrays for part in parts), strict=True)]
    mx.eval(arrays)
    return Packed(arrays, sum(part.error for part in parts), sum(part.power for part in parts))


def beside(parts: list[mx.array]) -> mx.array:
    """Arrays of neighbouring columns."""
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)


@dataclass(frozen=True)
class _Prepared:
    """The moments of inputs in a range of columns: a factor, and the correction for shifted inputs."""

    columns: tuple[int, int]
    factor: Factor
    correction: mx.array | None = None


def prepared(moments: Moments, tied: bool = False) -> Iterator[_Prepared]:
    """Factor the moments, one range of columns after another, and let go of them.

    Args:
        moments: Of the inputs.
        tied: The matrix is the table of embeddings too, whose error counts by itself: its columns weigh as much again.

    Raises:
        ValueError: They are not finite.
    """
    for columns, hessian, cross in moments.take():
        shift = correction(hessian, cross, CORRECTION_DAMPING) if cross is not None and not tied else None
        del cross
        ready = _Prepared(columns, factor(hessian, 1.0 if tied else DAMPING), shift)
        del hessian, shift
        mx.clear_cache()
        yield ready


def quantize_columns(
    read: Rows, rows: int, ready: _Prepared, spec: QuantSpec, dtype: mx.Dtype, most_shift: float = inf
) -> Packed:
    """A range of columns of a matrix of so many rows, a block of rows at a time.

    Args:
        read: Reads rows of it.
        rows: How many there are.
        ready: The moments of its inputs in these columns.
        spec: How it is stored.
        dtype: Of scales and biases.
        most_shift: How far a row may be moved to make up for shifted inputs, relative to its length.
    """
    first, last = ready.columns
    step = max(1, min(rows, BLOCK // (last - first)))
    found = []
    for start in range(0, rows, step):
        weight = read(start, min(start + step, rows))[:, first:last].astype(mx.float32)
        if ready.correction is not None:
            weight = _shifted(weight, weight @ ready.correction, most_shift)
        part = feedback_affine(weight, ready.factor, group_size=spec.group_size, bits=spec.bits, dtype=dtype)
        found.append(Packed([_packed(part.codes, spec), part.scales, part.biases], part.error, part.power))
        mx.eval(found[-1].arrays)
        mx.clear_cache()
    return joined(found, mx.concatenate)


def _shifted(weight: mx.array, shift: mx.array, most: float) -> mx.array:
    """Corrected rows, none by more than so much of its length."""
    size, length = (mx.linalg.norm(x, axis=-1, keepdims=True) for x in (shift, weight))
    return weight + shift * mx.minimum(1.0, most * length / mx.maximum(size, 1e-30))


def _packed(codes: mx.array, spec: QuantSpec) -> mx.array:
    rows = codes.shape[0]
    return pack(codes.reshape(-1, spec.group_size), spec.bits).reshape(rows, -1).view(mx.uint32)


def _rows_of(read: Rows, expert: int) -> Rows:
    """Rows of one matrix of a stack, which is read now."""
    matrix = read(expert, expert + 1)[0]
    return lambda start, stop: matrix[start:stop]


def quantize_experts(read: Rows, shape: tuple[int, ...], inputs: Experts, spec: QuantSpec, dtype: mx.Dtype) -> Packed:
    """The same of a stack [experts, rows, columns]; experts that got few tokens lean on what all experts got."""
    experts, rows, columns = shape
    ranges = []
    for start, stop in column_ranges(columns):
        shared = inputs.shared(start, stop) * (SHARED * columns)
        found = []
        for expert in range(experts):
            x = inputs.inputs(expert, start, stop)
            hessian = shared if x is None else shared + x.T @ x
            ready = _Prepared((start, stop), factor(hessian, DAMPING))
            found.append(quantize_columns(_rows_of(read, expert), rows, ready, spec, dtype))
            mx.clear_cache()
        ranges.append(joined(found, mx.stack))
    return joined(ranges, beside)
