"""What passes as the same output: by dtype, and where values are not finite."""

from __future__ import annotations

import mlx.core as mx
import pytest
import torch
from torch import nn

import mlxport
from mlxport.parity.port_parity import compare

INF, NAN = float("inf"), float("nan")
THEIRS = [1.0, -2.0, 3.0, INF, NAN]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize(
    ("ours", "passes"),
    [
        ([1.0, -2.0, 3.0, INF, NAN], True),
        ([1.0, -2.0, 3.0, INF, 0.0], False),
        ([NAN, -2.0, 3.0, INF, NAN], False),
        ([NAN] * 5, False),
        ([1.0, 2.0, -3.0, INF, NAN], False),
    ],
    ids=["equal", "a number for NaN", "NaN for a number", "all NaN", "other signs"],
)
def test_finite_on_both_sides(ours, passes, dtype, bits):
    assert (compare(mx.array(ours), torch.tensor(THEIRS), dtype, bits).failure == "") is passes


@pytest.mark.parametrize(("dtype", "passes"), [("float16", True), ("bfloat16", False), ("float32", False)])
def test_beyond_the_range(dtype, passes):
    figures = compare(mx.array([1.0, -INF]), torch.tensor([1.0, -3e38]), dtype, None)
    assert (figures.failure == "") is passes


class Divided(nn.Module):
    def forward(self, x):
        return x / (x - x)


def test_nothing_finite_is_noted(tmp_path):
    report = mlxport.port_folder(lambda: (Divided(), (torch.randn(2, 4),)), tmp_path / "out")
    assert report.parity.passed and "example, output: the original gives no finite number" in report.parity.notes[0]


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64, bias=False)

    def forward(self, x):
        return self.linear(x) * 1e-24


def test_tiny_outputs_are_noted(tmp_path):
    report = mlxport.port_folder(lambda: (Tiny(), (torch.randn(2, 64),)), tmp_path / "out", quantize=8)
    assert "nothing larger than" in report.parity.notes[0]
    assert all(row.cosine > 0.99 for row in report.parity.comparisons)


class Large(nn.Module):
    def forward(self, x):
        return (x * 300) ** 2 / 9e4


def test_overflow_in_half_is_a_failure(tmp_path):
    with pytest.raises(mlxport.errors.VerificationError, match="finite on one side only"):
        mlxport.port_folder(lambda: (Large(), (torch.ones(2, 4) * 2,)), tmp_path / "out", dtype="float16")
