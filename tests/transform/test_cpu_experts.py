"""Matrices of experts in half precision run on the CPU too, and it is said once that they ran in float32."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxport.transform import cpu_experts
from mlxport.transform.cpu_experts import half_precision_experts, remarked


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    half_precision_experts()
    monkeypatch.setitem(cpu_experts._state, "said", 0)


def arrays(dtype: mx.Dtype, count: int = 6) -> tuple[mx.array, mx.array]:
    key = mx.random.split(mx.random.key(1))
    x, weight = mx.random.normal((4, 2, 3, 8), key=key[0]), mx.random.normal((count, 16, 8), key=key[1])
    return x.astype(dtype), weight.astype(dtype).swapaxes(-1, -2)


# Fewer and more indices than there are experts, broadcast against the batch, sorted and not.
INDICES = [[[0, 3]], [[5, 1], [2, 2], [0, 4], [1, 1]], [[0, 0], [1, 2], [3, 3], [4, 5]]]


@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_the_result_is_the_rounded_product(dtype, indices):
    x, weight = arrays(dtype)
    chosen = mx.array(indices, dtype=mx.uint32)
    wanted = (x.astype(mx.float32) @ weight.astype(mx.float32)[chosen]).astype(dtype)
    given = mx.gather_mm(x, weight, rhs_indices=chosen, stream=mx.cpu)
    assert given.dtype == dtype
    error = mx.abs(given.astype(mx.float32) - wanted.astype(mx.float32)).max().item()
    assert error <= 2 ** (-7 if dtype == mx.bfloat16 else -10) * mx.abs(wanted).max().item()


def test_both_kinds_of_indices_and_two_dtypes():
    x, weight = arrays(mx.bfloat16)
    left, right = mx.array([7, 0, 3], dtype=mx.uint32), mx.array([5, 5, 1], dtype=mx.uint32)
    given = mx.gather_mm(x, weight.astype(mx.float32), left, right, stream=mx.cpu)
    assert given.dtype == mx.float32
    wanted = x.astype(mx.float32).reshape(-1, 3, 8)[left] @ weight.astype(mx.float32)[right]
    np.testing.assert_allclose(np.array(given), np.array(wanted), rtol=1e-5, atol=1e-5)


def test_without_indices_for_the_matrices():
    x, weight = arrays(mx.float16, count=1)
    given = mx.gather_mm(x, weight, lhs_indices=mx.array([2], dtype=mx.uint32), stream=mx.cpu)
    wanted = x.reshape(-1, 3, 8)[2:3].astype(mx.float32) @ weight.astype(mx.float32)
    np.testing.assert_allclose(np.array(given.astype(mx.float32)), np.array(wanted), atol=2e-2)


def test_float32_is_left_alone_and_the_remark_comes_once():
    said: list[str] = []
    x, weight = arrays(mx.float32)
    chosen = mx.array([[0, 1]], dtype=mx.uint32)
    with remarked(said.append):
        mx.eval(mx.gather_mm(x, weight, rhs_indices=chosen, stream=mx.cpu))
    assert said == []
    for _ in range(2):
        with remarked(said.append):
            mx.eval(mx.gather_mm(x.astype(mx.bfloat16), weight.astype(mx.bfloat16), rhs_indices=chosen, stream=mx.cpu))
        assert len(said) == 1 and "float32" in said[0]


def test_installing_it_twice_is_installing_it_once():
    before = mx.gather_mm
    half_precision_experts()
    assert mx.gather_mm is before
