"""Error feedback: less error on given inputs than without data, in MLX's format."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxport.quant.feedback import correction, factor, feedback_affine
from mlxport.quant.search import pack, search_affine

ROWS, COLUMNS, TOKENS = 48, 256, 2000


def correlated(columns: int = COLUMNS, tokens: int = TOKENS, seed: int = 0) -> mx.array:
    """Inputs as models have them: a few directions carry most, columns differ in size."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((tokens, columns // 8)) @ random.standard_normal((columns // 8, columns))
    sizes = np.exp(random.standard_normal(columns))
    return mx.array(((mixed + 0.5 * random.standard_normal((tokens, columns))) * sizes).astype(np.float32))


def weights(rows: int = ROWS, columns: int = COLUMNS, seed: int = 1, dtype: mx.Dtype = mx.bfloat16) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32) * 0.05).astype(
        dtype
    )


def lost(x: mx.array, weight: mx.array, stored: mx.array) -> float:
    """Relative squared error of the outputs."""
    wide = weight.astype(mx.float32)
    return (mx.square(x @ (wide - stored).T).sum() / mx.square(x @ wide.T).sum()).item()


def unpacked(codes: mx.array, scales: mx.array, biases: mx.array, group: int, bits: int) -> mx.array:
    words = pack(codes.reshape(-1, group), bits).reshape(codes.shape[0], -1).view(mx.uint32)
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    return mx.dequantize(words, scales, biases, group_size=group, bits=bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("group", [32, 64])
def test_less_error_on_the_inputs_than_the_search(bits, group):
    x, weight = correlated(), weights()
    moments = factor(x.T @ x, 0.01)
    found = feedback_affine(weight, moments, group_size=group, bits=bits, dtype=mx.bfloat16)
    assert found.codes.dtype == mx.uint8 and found.codes.max().item() < 1 << bits
    assert found.scales.shape == found.biases.shape == (ROWS, COLUMNS // group)
    assert found.scales.dtype == found.biases.dtype == mx.bfloat16
    ours = lost(x, weight, unpacked(found.codes, found.scales, found.biases, group, bits))
    plain = search_affine(weight, group_size=group, bits=bits)
    wide = [part.astype(mx.float32) for part in plain[1:]]
    theirs = lost(x, weight, mx.dequantize(plain[0], *wide, group_size=group, bits=bits))
    assert ours < 0.6 * theirs
    gap = weight.astype(mx.float32) - unpacked(found.codes, found.scales, found.biases, group, bits)
    assert found.error == pytest.approx((gap * (gap @ moments.hessian)).sum().item(), rel=1e-2)


def test_sweeps_lower_the_error():
    x, weight = correlated(), weights()
    moments = factor(x.T @ x, 0.01)
    errors = [
        feedback_affine(weight, moments, group_size=64, bits=3, dtype=mx.bfloat16, sweeps=sweeps).error
        for sweeps in (0, 1, 2, 4)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.95 * errors[0]


def test_rows_are_independent_and_the_result_repeats():
    x, weight = correlated(), weights()
    moments = factor(x.T @ x, 0.01)
    whole = feedback_affine(weight, moments, group_size=64, bits=4, dtype=mx.bfloat16)
    again = feedback_affine(weight, moments, group_size=64, bits=4, dtype=mx.bfloat16)
    assert all(mx.array_equal(a, b).item() for a, b in zip(whole[:3], again[:3], strict=True))
    part = feedback_affine(weight[16:], moments, group_size=64, bits=4, dtype=mx.bfloat16)
    # Products of other sizes add in another order, which may tip a code that lies between two.
    assert (part.codes != whole.codes[16:]).sum().item() <= 0.01 * part.codes.size


def test_columns_that_nothing_reaches_and_constant_rows():
    x = correlated() * (mx.arange(COLUMNS) % 3 > 0)
    weight = mx.concatenate([weights(), mx.zeros((2, COLUMNS), mx.bfloat16), mx.full((2, COLUMNS), 0.5, mx.bfloat16)])
    found = feedback_affine(weight, factor(x.T @ x, 0.05), group_size=64, bits=4, dtype=mx.bfloat16)
    stored = unpacked(found.codes, found.scales, found.biases, 64, 4)
    assert mx.all(mx.isfinite(stored)).item()
    assert mx.abs(stored[ROWS:] - weight[ROWS:]).max().item() < 1e-3


def test_fewer_tokens_than_columns():
    x, weight = correlated(tokens=20), weights()
    found = feedback_affine(weight, factor(x.T @ x, 0.05), group_size=64, bits=4, dtype=mx.bfloat16)
    stored = unpacked(found.codes, found.scales, found.biases, 64, 4)
    assert lost(x, weight, stored) < 0.002
    assert (mx.square(stored - weight).sum() / mx.square(weight.astype(mx.float32)).sum()).item() < 0.1


def test_the_correction_is_the_least_squares_solution():
    random = np.random.default_rng(3)
    original = np.array(correlated(64))
    shifted = original + 0.3 * random.standard_normal(original.shape) * original.std()
    weight = np.array(weights(24, 64, dtype=mx.float32))
    hessian, cross = shifted.T @ shifted, (original - shifted).T @ shifted
    found = weight + weight @ np.array(correction(mx.array(hessian), mx.array(cross), 1e-6))
    best = np.linalg.lstsq(shifted, original @ weight.T, rcond=None)[0].T
    assert np.abs(found - best).max() < 1e-3 * np.abs(best).max()


def test_values_that_are_not_finite_are_refused():
    hessian = mx.eye(64)
    with pytest.raises(ValueError, match="not finite"):
        factor(mx.where(mx.arange(64) == 3, float("nan"), hessian), 0.01)
    with pytest.raises(ValueError, match="not finite"):
        correction(hessian, mx.full((64, 64), float("inf")), 0.1)
