"""The search stores what it optimised, and no group is worse than round-to-nearest's."""

from __future__ import annotations

import itertools

import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlxport.parity.dequantize import dequantize, unpack
from mlxport.quant import MODES
from mlxport.quant.search import search_affine, search_bytes
from mlxport.transform import to_bytes

DTYPES = [mx.float32, mx.float16, mx.bfloat16]
SETTINGS = list(itertools.product(sorted(MODES["affine"].bits), sorted(MODES["affine"].groups)))
# What is left of round-to-nearest's squared error, at most, of normally distributed weights in groups of 64.
LEFT = {2: 0.70, 3: 0.81, 4: 0.88, 5: 0.90, 6: 0.92, 8: 0.92}
Triple = tuple[mx.array, mx.array, mx.array]


def rtn(weight: mx.array, group_size: int, bits: int) -> Triple:
    words, scales, biases = mx.quantize(weight, group_size=group_size, bits=bits)
    return words, scales, biases


def searched(weight: mx.array, group_size: int, bits: int, **options: int | None) -> Triple:
    return search_affine(weight, group_size=group_size, bits=bits, **options)  # type: ignore[arg-type]


def grouped(weight: mx.array, triple: Triple, group_size: int, bits: int) -> tuple[np.ndarray, ...]:
    """Weights and codes [groups, size], scales and biases [groups, 1], read from the stored bits; float64."""
    codes = unpack(torch.from_numpy(np.array(triple[0]).view(np.int32)), bits).numpy()
    scales, biases = (np.array(part.astype(mx.float32)).astype(np.float64).reshape(-1, 1) for part in triple[1:])
    wide = np.array(weight.astype(mx.float32)).astype(np.float64).reshape(-1, group_size)
    return wide, codes.astype(np.float64).reshape(-1, group_size), scales, biases


def errors(weight: mx.array, triple: Triple, group_size: int, bits: int) -> np.ndarray:
    """Squared error of each group."""
    wide, codes, scales, biases = grouped(weight, triple, group_size, bits)
    return np.square(wide - (codes * scales + biases)).sum(axis=-1)


def assert_not_worse(weight: mx.array, group_size: int, bits: int) -> None:
    found, plain = searched(weight, group_size, bits), rtn(weight, group_size, bits)
    for ours, theirs in zip(found, plain, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    wide = grouped(weight, plain, group_size, bits)[0]
    rounding = (1e-6 * np.abs(wide).max(axis=-1)) ** 2 * group_size
    before, after = errors(weight, plain, group_size, bits), errors(weight, found, group_size, bits)
    assert (after <= before * 1.0001 + rounding).all(), (before, after)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group_size"), SETTINGS)
def test_what_is_stored_is_what_was_optimised(bits: int, group_size: int, dtype: mx.Dtype):
    weight = (mx.random.normal((40, 384), key=mx.random.key(bits)) * 0.02).astype(dtype)
    found = searched(weight, group_size, bits)
    wide, codes, scales, biases = grouped(weight, found, group_size, bits)
    values = mx.dequantize(found[0], *(x.astype(mx.float32) for x in found[1:]), group_size=group_size, bits=bits)
    ours = dequantize(
        torch.from_numpy(np.array(found[0]).view(np.int32)),
        *(torch.from_numpy(np.array(x.astype(mx.float32))) for x in found[1:]),
        mode="affine",
        bits=bits,
        group_size=group_size,
    )
    assert np.allclose(np.array(values), ours.numpy(), rtol=1e-6, atol=1e-8)
    nearest = np.clip((wide - biases) / scales, 0, 2**bits - 1)
    assert np.abs(codes - nearest).max() < 0.5001
    assert_not_worse(weight, group_size, bits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", LEFT)
def test_the_error_falls(bits: int, dtype: mx.Dtype):
    weight = (mx.random.normal((256, 512), key=mx.random.key(1)) * 0.02).astype(dtype)
    before, after = (errors(weight, how(weight, 64, bits), 64, bits).sum() for how in (rtn, searched))
    assert after <= LEFT[bits] * before


@pytest.mark.parametrize(("bits", "group_size"), SETTINGS)
def test_round_to_nearest_is_among_the_candidates(bits: int, group_size: int, monkeypatch):
    """Where nothing better is found, scales and biases are those of mx.quantize, bit for bit."""
    monkeypatch.setattr("mlxport.quant.search._fitted", lambda ticks, _: (mx.zeros_like(ticks[:, :1]),) * 2)
    for dtype, seed in itertools.product(DTYPES, range(3)):
        weight = (mx.random.normal((24, 384), key=mx.random.key(seed)) * 10.0 ** (seed - 2) + seed).astype(dtype)
        found, plain = searched(weight, group_size, bits), rtn(weight, group_size, bits)
        for ours, theirs in zip(found[1:], plain[1:], strict=True):
            assert to_bytes(ours).tobytes() == to_bytes(theirs).tobytes()


@pytest.mark.parametrize("bits", sorted(MODES["affine"].bits))
def test_the_same_every_time_and_however_it_is_cut(bits: int):
    weight = mx.random.normal((6, 10, 256), key=mx.random.key(2)).astype(mx.bfloat16)
    whole = [to_bytes(part).tobytes() for part in searched(weight, 64, bits)]
    for chunk in (None, 1, 64 * 7, 1 << 20):
        assert [to_bytes(part).tobytes() for part in searched(weight, 64, bits, chunk=chunk)] == whole
    rows = [searched(weight[i], 64, bits) for i in range(6)]
    assert [to_bytes(mx.stack(parts)).tobytes() for parts in zip(*rows, strict=True)] == whole


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", sorted(MODES["affine"].bits))
@pytest.mark.parametrize("value", [0.0, 1.0, -0.3, 1e-4, 6e4, -2e-7])
def test_equal_weights(value: float, bits: int, dtype: mx.Dtype):
    weight = mx.full((2, 64), value).astype(dtype)
    found = searched(weight, 64, bits)
    assert_not_worse(weight, 64, bits)
    wide, codes, scales, biases = grouped(weight, found, 64, bits)
    assert np.abs(wide - (codes * scales + biases)).max() <= 1.2e-7 * max(1.0, abs(value))


@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (2, 0, 128)])
def test_nothing_is_as_mlx_has_it(shape: tuple[int, ...]):
    for ours, theirs in zip(searched(mx.zeros(shape), 64, 4), rtn(mx.zeros(shape), 64, 4), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@given(
    bits=st.sampled_from(sorted(MODES["affine"].bits)),
    group_size=st.sampled_from(sorted(MODES["affine"].groups)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1 << 32),
    magnitude=st.floats(-35, 35),
    shift=st.sampled_from([0.0, 1.0, -30.0, 1e4]),
    tail=st.sampled_from([1, 3, 9]),
    levels=st.sampled_from([0, 1, 2, 5]),
)
def test_no_group_is_worse(bits, group_size, dtype, seed, magnitude, shift, tail, levels):
    """Heavy tails, few distinct values, groups far from zero, huge and tiny ones."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((4, 2 * group_size)) ** tail + shift
    if levels:
        values = np.round(values * levels) / levels
    most = {mx.float32: 1e37, mx.bfloat16: 1e37, mx.float16: 6e4}[dtype]
    values = np.clip(values * 10.0**magnitude, -most, most)
    assert_not_worse(mx.array(values.astype(np.float32)).astype(dtype), group_size, bits)


@pytest.mark.parametrize("bits", sorted(MODES["affine"].bits))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_stays_in_its_group(value: float, bits: int):
    plain = mx.random.normal((4, 128), key=mx.random.key(3))
    spoilt = np.array(plain)
    spoilt[1, 70] = value
    if value == 3e38:
        spoilt[1, 71] = -value  # a span that overflows
    found, wanted = searched(mx.array(spoilt), 64, bits), searched(plain, 64, bits)
    assert not np.isfinite(np.array(found[1])[1, 1])
    for ours, theirs in zip(found, wanted, strict=True):
        ours, theirs = (np.array(part).reshape(8, -1) for part in (ours, theirs))
        assert np.array_equal(np.delete(ours, 3, axis=0), np.delete(theirs, 3, axis=0))


def test_the_bytes_that_it_takes_are_those_that_it_says():
    weight = mx.random.normal((1024, 2048), key=mx.random.key(4)).astype(mx.bfloat16)
    mx.eval(weight)
    for bits in (4, 8):
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(searched(weight, 64, bits))
        stored = 2 * weight.size * (bits + 0.5) / 8  # the parts and their concatenation
        assert mx.get_peak_memory() - before <= 1.1 * search_bytes(weight.size) + stored
    assert search_bytes(64) < 64 * 64
