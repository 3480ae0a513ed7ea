"""``torch.compile(module, backend="mlxport")``."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mlxport  # noqa: F401  (must not be needed: the backend is an entry point)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x, mask=None):
        x = F.gelu(self.norm(self.conv(x)))
        x = F.max_pool2d(x, 2).flatten(2).transpose(1, 2)
        x = x + self.attend(x, x, x, need_weights=False)[0]
        if mask is not None:
            x = x.masked_fill(mask[..., None], 0)
        return self.head(x), x.argmax(-1), mask


@pytest.fixture
def net():
    torch.manual_seed(0)
    torch._dynamo.reset()
    return Net().eval()


def test_outputs_and_other_sizes(net):
    compiled = torch.compile(net, backend="mlxport")
    with torch.no_grad():
        for batch, size in ((2, 8), (2, 8), (3, 12), (4, 6)):
            x = torch.randn(batch, 3, size, size)
            mask = torch.rand(batch, size * size // 4) > 0.5
            for given in ((x,), (x, mask)):
                wanted, got = net(*given), compiled(*given)
                assert torch.allclose(got[0], wanted[0], atol=1e-5)
                assert torch.equal(got[1], wanted[1]) and got[1].dtype is torch.int64
                assert got[2] is None if len(given) == 1 else torch.equal(got[2], mask)


def test_changed_parameters_are_seen(net):
    compiled = torch.compile(net, backend="mlxport")
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        before = compiled(x)[0]
        net.head.weight.mul_(2)
        after = compiled(x)[0]
        assert torch.allclose(after, net(x)[0], atol=1e-5) and not torch.allclose(before, after)


def test_inference_only(net):
    compiled = torch.compile(net, backend="mlxport")
    with pytest.raises(Exception, match="is for inference"):
        compiled(torch.randn(2, 3, 8, 8))[0].sum().backward()
