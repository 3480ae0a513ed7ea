"""Folders of modules in other dtypes, and of those whose parts MLX has in one dtype only."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mlxport
from mlxport.errors import QuantizationError


class Spectral(nn.Module):
    """A complex parameter."""

    def __init__(self, dtype=torch.complex64):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, 9, dtype=dtype))

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=16)


class Normalized(nn.Module):
    """weight_norm of the old kind, whose weight is no leaf that deepcopy takes."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.utils.weight_norm(nn.Conv1d(4, 6, 3))

    def forward(self, x):
        return F.elu(self.conv(x))


class Biased(nn.Module):
    """A mask that stays in float32 beside queries of half the width."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, mask):
        q = self.linear(x)[:, None]
        return F.scaled_dot_product_attention(q, q, q, attn_mask=torch.where(mask, 0.0, -1e4))


class Decomposed(nn.Module):
    """MLX decomposes matrices of float32."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        y = self.linear(x)
        return torch.linalg.qr(y)[1].abs() @ x


CASES = {
    "complex": (Spectral, (torch.randn(2, 4, 16),), "auto"),
    "complex128": (lambda: Spectral(torch.complex128), (torch.randn(2, 4, 16, dtype=torch.float64),), "auto"),
    "weight_norm in half": (Normalized, (torch.randn(2, 4, 9),), "float16"),
    "weight_norm in bfloat16": (Normalized, (torch.randn(2, 4, 9),), "bfloat16"),
    "float32 mask": (Biased, (torch.randn(2, 5, 8), torch.rand(5, 5) > 0.3), "bfloat16"),
    "decomposition in half": (Decomposed, (torch.randn(2, 4, 4),), "float16"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_ported(name, tmp_path):
    make, inputs, dtype = CASES[name]
    torch.manual_seed(0)
    module = make().eval()
    report = mlxport.port_folder(lambda: (module, inputs), tmp_path / "out", dtype=dtype)
    assert report.parity is not None and report.parity.passed
    module(*inputs)  # it still works


def test_parameters_are_counted(tmp_path):
    report = mlxport.port_folder(lambda: (Spectral(), (torch.randn(2, 4, 16),)), tmp_path / "out")
    assert report.plan.parameters == 36


def test_nothing_to_quantize(tmp_path):
    with pytest.raises(QuantizationError, match="the model has no layers with weights"):
        mlxport.port_folder(lambda: (Spectral(), (torch.randn(2, 4, 16),)), tmp_path / "out", quantize=4)
