"""From statistics to packed weights: ranges of columns, and stacks of experts."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxport.calibrate.moments import MOST_COLUMNS, Experts, Moments, column_ranges
from mlxport.calibrate.packed_matrices import beside, joined, prepared, quantize_columns, quantize_experts
from mlxport.quant import make_spec

ROWS, COLUMNS, TOKENS = 24, 384, 600


@given(st.integers(1, 3000))
def test_ranges_cover_all_columns_and_cut_no_group(groups):
    columns = 32 * groups
    ranges = column_ranges(columns)
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])] and ranges[-1][1] == columns
    assert all(start % 128 == 0 and 0 < stop - start <= MOST_COLUMNS for start, stop in ranges)


def inputs(seed: int) -> mx.array:
    """Correlated columns [TOKENS, COLUMNS], as activations are."""
    few = mx.random.normal((TOKENS, 96), key=mx.random.key(seed))
    mixed = mx.random.normal((96, COLUMNS), key=mx.random.key(seed + 1))
    return few @ mixed / 10 + 0.1 * mx.random.normal((TOKENS, COLUMNS), key=mx.random.key(seed + 2))


def lost(weight: mx.array, arrays: list[mx.array], x: mx.array, bits: int) -> float:
    """Squared error of the outputs."""
    stored = mx.dequantize(*arrays, group_size=64, bits=bits)
    return mx.square(x @ (stored - weight).T).sum().item()


@pytest.mark.parametrize("most", [MOST_COLUMNS, 128, 256])
@pytest.mark.parametrize("bits", [3, 4])
def test_a_matrix(bits, most, monkeypatch):
    monkeypatch.setattr("mlxport.calibrate.moments.MOST_COLUMNS", most)
    weight, x = mx.random.normal((ROWS, COLUMNS), key=mx.random.key(0)), inputs(1)
    moments = Moments()
    moments.add(x[:300], x[:300])
    moments.add(x[300:], x[300:])
    assert mx.allclose(moments.power(), mx.square(x).mean(axis=0), rtol=1e-3)
    spec = make_spec("affine", bits)
    parts = [quantize_columns(lambda a, b: weight[a:b], ROWS, r, spec, mx.float32) for r in prepared(moments)]
    assert len(parts) == len(column_ranges(COLUMNS)) and not moments.arrays()
    found, plain = joined(parts, beside).arrays, mx.quantize(weight, group_size=64, bits=bits)
    assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in plain]
    assert lost(weight, found, x, bits) < 0.6 * lost(weight, list(plain), x, bits)


@pytest.mark.parametrize("most", [MOST_COLUMNS, 128])
def test_experts(most, monkeypatch):
    """The second expert gets few tokens, the third none."""
    monkeypatch.setattr("mlxport.calibrate.moments.MOST_COLUMNS", most)
    weight, x = mx.random.normal((3, ROWS, COLUMNS), key=mx.random.key(5)), inputs(6)
    seen = Experts()
    seen.add_expert(0, x)
    seen.add_expert(1, x[:20])
    packed = quantize_experts(lambda a, b: weight[a:b], weight.shape, seen, make_spec("affine", 3), mx.float32)
    plain = mx.quantize(weight, group_size=64, bits=3)
    assert [(a.shape, a.dtype) for a in packed.arrays] == [(a.shape, a.dtype) for a in plain]
    for expert in range(3):
        ours, theirs = ([a[expert] for a in arrays] for arrays in (packed.arrays, plain))
        assert lost(weight[expert], ours, x, 3) < 0.7 * lost(weight[expert], theirs, x, 3), expert
