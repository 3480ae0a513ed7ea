"""Affine quantization of a matrix against the activations that it will meet.

The error of a row of weights e on activations X is |X eᵀ|² = e H eᵀ with H = XᵀX. Columns are rounded in order, each
after the errors of those before it were passed on to it, as in GPTQ (Frantar et al., https://arxiv.org/abs/2210.17323)
but in the form of LDLQ (Chee et al., https://arxiv.org/abs/2307.13304), which needs no inverse of H: with H = R Rᵀ, R
upper triangular, the error is a sum over columns of R[k,k]² (e[k] + Σ_{j<k} e[j] R[j,k] / R[k,k])², whose term the code
of column k makes as small as it can be. Sweeps follow that lower e H eᵀ itself: each code in turn given all others,
and scale and bias of each group by least squares given its codes. Scales and biases are those that are stored, rounded
to the weight's dtype, and no step that would raise a row's error is taken.

Everything is done on the transpose, [columns, rows], so that a column is contiguous; rows are independent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx

__all__ = ["Factor", "Quantized", "correction", "factor", "feedback_affine"]

# Shares of a group's span that are tried for its scale.
_SPANS = (1.0, 0.9, 0.8, 0.65)
_EPS = 1e-7  # the least scale of mx.quantize
_BLOCK = 2048  # rows of a product of two large square matrices that one kernel computes


class Quantized(NamedTuple):
    """What is stored, and how good it is.

    Attributes:
        codes: uint8 [rows, columns].
        scales: [rows, groups], in the dtype that was asked for.
        biases: As ``scales``.
        error: Sum of e H eᵀ over the rows.
        power: Sum of w H wᵀ over the rows.
    """

    codes: mx.array
    scales: mx.array
    biases: mx.array
    error: float
    power: float


class Factor(NamedTuple):
    """H, damped, and what the column-wise rounding needs of it.

    Attributes:
        hessian: [columns, columns], float32.
        passed: [columns, columns]: row j says what share of column j's error goes to each later column.
        weights: [columns]: R[k,k]², what an error is worth after it was passed on.
    """

    hessian: mx.array
    passed: mx.array
    weights: mx.array


def factor(hessian: mx.array, damping: float) -> Factor:
    """Factor a matrix of second moments; the Cholesky decomposition runs on the CPU.

    Args:
        hessian: Symmetric, float32 [columns, columns].
        damping: Added to the diagonal, as a share of its mean; raised where the matrix is still not definite.

    Raises:
        ValueError: The matrix is not finite.
    """
    while True:
        damped = _damped(hessian, damping)
        lower = _cholesky(damped[::-1, ::-1])
        upper = mx.contiguous(lower[::-1, ::-1])
        diagonal = mx.diag(upper)
        if mx.all(mx.isfinite(diagonal) & (diagonal > 0)).item():
            break
        damping *= 10
    passed = mx.triu(upper / diagonal[None], k=1)
    mx.eval(damped, passed)
    return Factor(damped, passed, mx.square(diagonal))


def correction(hessian: mx.array, cross: mx.array, damping: float) -> mx.array:
    """What to add to weights W, as a factor K of W + W K, before they are rounded.

    Where the inputs Y that a matrix meets differ from those, X, that the original met, the weights V that bring V Yᵀ
    closest to W Xᵀ are not W: V - W = W (X - Y)ᵀ Y (YᵀY + λ)⁻¹ (as in GPTAQ, Li et al., https://arxiv.org/abs/2504.02692).

    Args:
        hessian: YᵀY, float32 [columns, columns].
        cross: (X - Y)ᵀ Y.
        damping: λ, as a share of the mean of the diagonal: what is measured on few tokens must not be believed whole.

    Raises:
        ValueError: A matrix is not finite.
    """
    lower = _cholesky(_damped(hessian, damping))
    with mx.stream(mx.cpu):
        inverse = mx.linalg.tri_inv(lower)
        mx.eval(inverse)
    if not mx.all(mx.isfinite(inverse)).item() or not mx.all(mx.isfinite(cross)).item():
        raise ValueError("the second moments are not finite")
    return _product(_product(cross, inverse.T), inverse)


def _damped(hessian: mx.array, damping: float) -> mx.array:
    mean = mx.mean(mx.diag(hessian))
    if not mx.isfinite(mean).item() or not mx.all(mx.isfinite(hessian)).item():
        raise ValueError("the second moments are not finite")
    place = mx.arange(hessian.shape[0])
    return hessian.at[place, place].add(damping * mx.maximum(mean, 1e-20))


def _cholesky(matrix: mx.array) -> mx.array:
    with mx.stream(mx.cpu):
        lower = mx.linalg.cholesky(mx.contiguous(matrix))
        mx.eval(lower)
    return lower


def _product(left: mx.array, right: mx.array) -> mx.array:
    """A product by blocks of rows: one kernel must not run for seconds."""
    parts = []
    for start in range(0, left.shape[0], _BLOCK):
        parts.append(left[start : start + _BLOCK] @ right)
        mx.eval(parts[-1])
    return mx.concatenate(parts)


def feedback_affine(
    weight: mx.array, moments: Factor, *, group_size: int, bits: int, dtype: mx.Dtype, sweeps: int = 3
) -> Quantized:
    """Quantize rows of weights with error feedback.

    Args:
        weight: Floating, [rows, columns]; the temporaries take about seven times its size in float32.
        moments: Of the activations, by ``factor``.
        group_size: Columns that share a scale and a bias.
        bits: Of a code.
        dtype: Of the stored scales and biases.
        sweeps: Passes over all columns after the first.
    """
    part = _Rows(weight, moments, group_size, bits, dtype)
    part.round()
    for _ in range(sweeps):
        part.sweep()
    return part.result()


class _Rows:
    """Some rows being quantized, transposed."""

    def __init__(self, weight: mx.array, moments: Factor, group_size: int, bits: int, dtype: mx.Dtype) -> None:
        self.weight = mx.contiguous(weight.astype(mx.float32).T)
        self.moments, self.size, self.most, self.dtype = moments, group_size, (1 << bits) - 1, dtype
        groups = self.weight.shape[0] // group_size
        self.codes: list[mx.array] = [mx.array(0)] * groups
        self.scales: list[mx.array] = [mx.array(0)] * groups
        self.biases: list[mx.array] = [mx.array(0)] * groups
        self.errors = mx.zeros_like(self.weight)

    def round(self) -> None:
        """Every column once, in order, errors passed on."""
        passed = self.moments.passed
        for group in range(len(self.codes)):
            start, stop = group * self.size, (group + 1) * self.size
            exact = self.weight[start:stop]
            target = exact + passed[:start, start:stop].T @ self.errors[:start] if group else exact
            scale, bias = _span(target, self.moments.weights[start:stop], self.most, self.dtype)
            # In steps of the scale: fewer operations a column.
            rest, wanted = (target - bias) / scale, (exact - bias) / scale
            codes, own = [], passed[start:stop, start:stop, None]
            for k in range(self.size):
                code = mx.clip(mx.round(rest[0]), 0, self.most)
                rest = rest[1:] + own[k, k + 1 :] * (wanted[k] - code)
                codes.append(code)
            self.codes[group], self.scales[group], self.biases[group] = mx.stack(codes), scale, bias
            self.errors[start:stop] = exact - (self.codes[group] * scale + bias)
            mx.eval(self.errors, self.codes[group], scale, bias)

    def sweep(self) -> None:
        """Every code in turn given all others, and every scale and bias given the codes."""
        hessian = self.moments.hessian
        slope = hessian @ self.errors  # half of the derivative by a change of a stored weight, its sign turned
        for group in range(len(self.codes)):
            start, stop = group * self.size, (group + 1) * self.size
            own, scale, bias = hessian[start:stop, start:stop], self.scales[group], self.biases[group]
            # What each code is from its best place, in steps of the scale: a code that moves moves the others' places.
            inverse = 1 / mx.diag(own)[:, None]
            away, old, codes = slope[start:stop] / scale * inverse, self.codes[group], []
            pull = (own * inverse)[..., None]
            for k in range(self.size):
                code = mx.clip(mx.round(old[k] + away[0]), 0, self.most)
                away = away[1:] - pull[k + 1 :, k] * (code - old[k])
                codes.append(code)
            self.codes[group] = mx.stack(codes)
            here = slope[start:stop] - own @ ((self.codes[group] - old) * scale)
            self.scales[group], self.biases[group] = self._fitted(self.codes[group], scale, bias, here, own)
            error = self.weight[start:stop] - (self.codes[group] * self.scales[group] + self.biases[group])
            slope = slope + hessian[:, start:stop] @ (error - self.errors[start:stop])
            self.errors[start:stop] = error
            mx.eval(slope, self.errors, self.codes[group], self.scales[group], self.biases[group])

    def _fitted(
        self, codes: mx.array, scale: mx.array, bias: mx.array, slope: mx.array, own: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Scale and bias of a group that lower the error most, given its codes and everything else."""
        along, total = own @ codes, own.sum(axis=1)[:, None]
        cc, c1, one = (codes * along).sum(axis=0), along.sum(axis=0), total.sum()
        gc, g1 = (codes * slope).sum(axis=0), slope.sum(axis=0)
        determinant = cc * one - c1 * c1
        safe = determinant > 1e-6 * cc * one
        divisor = mx.where(safe, determinant, 1.0)
        more_scale = mx.where(safe, (gc * one - g1 * c1) / divisor, 0.0)
        more_bias = mx.where(safe, (g1 * cc - gc * c1) / divisor, g1 / one)
        new_scale, new_bias = _stored(scale + more_scale, self.dtype), _stored(bias + more_bias, self.dtype)
        ds, db = new_scale - scale, new_bias - bias
        change = ds * ds * cc + 2 * ds * db * c1 + db * db * one - 2 * (ds * gc + db * g1)
        better = (change < 0) & (mx.abs(new_scale) > _EPS)
        return mx.where(better, new_scale, scale), mx.where(better, new_bias, bias)

    def result(self) -> Quantized:
        """What is stored, evaluated."""
        codes = mx.contiguous(mx.concatenate(self.codes).astype(mx.uint8).T)
        scales, biases = (mx.contiguous(mx.stack(x).T.astype(self.dtype)) for x in (self.scales, self.biases))
        hessian = self.moments.hessian
        error, power = ((x * (hessian @ x)).sum() for x in (self.errors, self.weight))
        mx.eval(codes, scales, biases, error, power)
        found: tuple[Any, Any] = (error.item(), power.item())
        return Quantized(codes, scales, biases, *found)


def _stored(values: mx.array, dtype: mx.Dtype) -> mx.array:
    return values.astype(dtype).astype(mx.float32)


def _span(target: mx.array, weights: mx.array, most: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    """Scale and bias [rows] of the columns of a group [size, rows]: the best of several spans, each fitted to codes."""
    low, high = target.min(axis=0), target.max(axis=0)
    middle, half = (low + high) / 2, (high - low) / 2
    share = weights[:, None] / mx.maximum(weights.sum(), 1e-30)
    mean = (share * target).sum(axis=0)
    best = mx.full(low.shape, float("inf"))
    best_scale, best_bias = mx.full(low.shape, _EPS), _stored(middle, dtype)
    for span in _SPANS:
        scale = mx.maximum(2 * half * span / most, _EPS)
        bias = middle - half * span
        for _ in range(2):
            codes = mx.clip(mx.round((target - bias) / scale), 0, most)
            first = (share * codes).sum(axis=0)
            across = (share * codes * target).sum(axis=0) - first * mean
            spread = (share * codes * codes).sum(axis=0) - first * first
            scale = mx.maximum(mx.where(spread > 1e-6, across / mx.maximum(spread, 1e-6), scale), _EPS)
            bias = mean - first * scale
        scale, bias = mx.maximum(_stored(scale, dtype), _EPS), _stored(bias, dtype)
        codes = mx.clip(mx.round((target - bias) / scale), 0, most)
        error = (share * mx.square(target - codes * scale - bias)).sum(axis=0)
        better = error < best
        best = mx.where(better, error, best)
        best_scale, best_bias = mx.where(better, scale, best_scale), mx.where(better, bias, best_bias)
    mx.eval(best_scale, best_bias)
    return best_scale, best_bias
