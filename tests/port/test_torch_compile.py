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


class Constants(nn.Module):
    """Tensors that the code makes, and writes in place."""

    def forward(self, x):
        bins = torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0]))
        y = x.clone()
        y[:, 0] = 1.0
        return bins, torch.where(x > 0, torch.tensor(2.0), y)


class Decompositions(nn.Module):
    """Ops that check their result by themselves."""

    def forward(self, x):
        matrix = x @ x.mT + 3 * torch.eye(x.shape[-1])
        return torch.linalg.cholesky(matrix), torch.linalg.inv(matrix), torch.logdet(matrix), torch.linalg.slogdet(x)


LAYER = {"d_model": 16, "nhead": 4, "dim_feedforward": 24, "batch_first": True}
PADDING = torch.arange(7)[None] >= torch.tensor([[7], [4]])
CAUSAL = torch.ones(7, 7, dtype=torch.bool).triu(1)


@pytest.mark.parametrize(
    ("make", "args", "kwargs"),
    [
        (Constants, (torch.randn(3, 4),), {}),
        (Decompositions, (torch.randn(2, 4, 4),), {}),
        (lambda: nn.Bilinear(4, 5, 3), (torch.randn(2, 4), torch.randn(2, 5)), {}),
        (lambda: nn.TransformerEncoderLayer(**LAYER), (torch.randn(2, 7, 16),), {}),
        (lambda: nn.TransformerEncoderLayer(**LAYER, norm_first=True, activation="gelu"), (torch.randn(2, 7, 16),),
         {"src_key_padding_mask": PADDING}),
        (lambda: nn.TransformerEncoderLayer(**LAYER), (torch.randn(2, 7, 16),), {"src_mask": CAUSAL}),
        (lambda: nn.TransformerEncoderLayer(**LAYER), (torch.randn(2, 7, 16),),
         {"src_mask": CAUSAL, "src_key_padding_mask": PADDING}),
        (lambda: nn.MultiheadAttention(16, 4, batch_first=True), (torch.randn(2, 7, 16),) * 3, {}),
        (lambda: nn.MultiheadAttention(16, 4, batch_first=True), (torch.randn(2, 7, 16),) * 3,
         {"key_padding_mask": PADDING, "average_attn_weights": False}),
    ],
    ids=["constants", "decompositions", "bilinear", "layer", "padding", "causal", "both", "attention", "its weights"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_only_this_door_meets(make, args, kwargs):
    torch.manual_seed(0)
    torch._dynamo.reset()
    module = make().eval()
    compiled = torch.compile(module, backend="mlxport")
    with torch.no_grad():
        wanted, got = (torch.utils._pytree.tree_leaves(call(*args, **kwargs)) for call in (module, compiled))
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype is theirs.dtype and torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)
