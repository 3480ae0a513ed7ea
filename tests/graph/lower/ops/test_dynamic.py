"""Ops through ``mlxport.port``, called with inputs of other sizes than the example's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conformance import as_torch, compare
from torch import nn
from torch.utils import _pytree as pytree

import mlxport
from mlxport.graph.write.port_weights import to_mlx


class Functions(nn.Module):
    """Several functions of the same inputs."""

    def __init__(self, *functions):
        super().__init__()
        self.functions = functions

    def forward(self, *inputs):
        return [function(*inputs) for function in self.functions]


def randoms(*shapes):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def classes(*shapes):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randint(0, 4, shape, generator=generator) for shape in shapes)


WINDOW = torch.hann_window(16)
IMAGES = Functions(
    lambda x: F.interpolate(x, scale_factor=1.5),
    lambda x: F.interpolate(x, scale_factor=(0.6, 1.9), mode="bilinear"),
    lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear", recompute_scale_factor=True),
    lambda x: F.interpolate(x, size=(9, 4), mode="bicubic", align_corners=True),
    lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    lambda x: F.adaptive_max_pool2d(x, (3, 2), return_indices=True),
    lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2, output_size=x.shape[-2:]),
    lambda x: [F.pad(x, (1, 2, 2, 3), mode=mode) for mode in ("constant", "reflect", "replicate", "circular")],
    lambda x: F.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4)),
    lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[-2:], 3, padding=1),
)
SIGNALS = Functions(
    lambda x: torch.stft(x, 16, 4, window=WINDOW, return_complex=True).abs(),
    lambda x: torch.istft(torch.stft(x, 16, 4, window=WINDOW, return_complex=True), 16, 4, window=WINDOW),
    lambda x: torch.fft.irfft(torch.fft.rfft(x)),
    lambda x: x.unfold(-1, 5, 3),
    lambda x: (x.cumsum(1), x.cummax(1), x.topk(3), x.sort(0, descending=True), x.take_along_dim(x.argsort(1), 1)),
    lambda x: (x.roll((1, -2), (0, 1)), x.roll(3), x.flip(1), x.repeat_interleave(2, 1), x.repeat(2, 1)),
    lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])),
    lambda x: x.masked_fill(torch.ones(x.shape[0], x.shape[1]).tril().bool(), 0.5),
    lambda x: (x / x.shape[1] ** 0.5, torch.full((x.shape[0], 2), x.shape[1])),
    lambda x: torch.arange(x.shape[1] - 1, -1, -1),
    lambda x: torch.arange(x.shape[1], -x.shape[1], -1.0, dtype=torch.int64),
    lambda x: torch.nonzero(x > 1.5),
    lambda x: F.normalize(x),
)


def _assigned(x, i):
    y = x.clone()
    y[i] = 0
    y[:, 1] = y[:, 0]
    y[::2] -= 1
    y[y > 1] = 0.5
    return y


def _grouped(x, i):
    """Rows by class, each class by weights of its own, and back in their order: experts whose counts are read."""
    order = i.argsort(stable=True)
    parts = x[order].split(F.one_hot(i, 4).sum(0).tolist())
    rows = torch.cat([part * factor for factor, part in enumerate(parts)])
    return torch.zeros_like(x).index_add(0, order, rows)


INDICES = Functions(
    _assigned,
    lambda x, i: torch.zeros(4, x.shape[1]).index_add(0, i, x),
    lambda x, i: torch.zeros(4, x.shape[1]).index_put((i,), x, accumulate=True),
    lambda x, i: torch.zeros(4, x.shape[1]).scatter_reduce(0, i[:, None].expand_as(x), x, "amax", include_self=False),
    lambda x, i: F.one_hot(i, 4),
    lambda x, i: torch.einsum("ij,kj->ik", x, x),
    lambda x, i: x.masked_scatter(x > 0, x.flip(0)),
    lambda x, i: torch.bincount(i, minlength=6),
    _grouped,
)
SIZES_ONLY = Functions(
    lambda x, y: F.interpolate(x, size=y.shape[-2:], mode="bilinear"),
    lambda x, y: torch.arange(y.shape[-1]),
)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 5)
        self.lstm = nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(12, 7, num_layers=2)
        self.rnn = nn.RNN(7, 3, nonlinearity="relu")

    def forward(self, ids):
        x, (h, c) = self.lstm(self.embed(ids))
        y, last = self.gru(x.transpose(0, 1))
        return self.rnn(y)[0], h, c, last


CASES = {
    "images": (IMAGES, randoms((2, 3, 8, 10)), randoms((3, 3, 13, 7))),
    "signals": (SIGNALS, randoms((3, 64)), randoms((4, 100))),
    "indices": (INDICES, (*randoms((6, 5)), *classes((6,))), (*randoms((9, 7)), *classes((9,)))),
    "sizes only": (SIZES_ONLY, randoms((2, 3, 8, 10), (2, 3, 5, 6)), randoms((3, 3, 4, 7), (3, 3, 9, 8))),
    "any number of steps": (Recurrent().eval(), classes((2, 5)), classes((3, 9))),
}


@pytest.mark.parametrize("name", CASES)
def test_other_sizes(name):
    module, example, other = CASES[name]
    ported = mlxport.port(module, example)
    for inputs in (example, other):
        with torch.no_grad():
            wanted = pytree.tree_leaves(module(*inputs))
        outcome = compare([as_torch(leaf) for leaf in pytree.tree_leaves(ported(*to_mlx(inputs)))], wanted)
        assert outcome.status == "pass", outcome.reason


class Parts(nn.Module):
    def forward(self, batch):
        return batch["batch"] + batch["my key"] * batch["class"][0]


def test_parts_of_an_input_do_not_hide_it():
    a, b, c = randoms((2, 3), (2, 3), (2, 3))
    ported = mlxport.port(Parts(), ({"batch": a, "my key": b, "class": [c]},))
    assert "batch_batch" in ported.source
