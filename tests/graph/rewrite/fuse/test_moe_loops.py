"""Loops over a list of experts become one expert with stacked weights, however the chosen ones are picked."""

from __future__ import annotations

import pytest
import torch
from fusing import fused
from torch import nn
from torch.nn import functional as F


class MLP(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Gated(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.gate_up, self.down = nn.Linear(dim, 2 * hidden, bias=False), nn.Linear(hidden, dim, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Mixture(nn.Module):
    def __init__(self, expert=Gated, count=4, chosen=2):
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(8, count, bias=False)
        self.experts = nn.ModuleList(expert(8, 12) for _ in range(count))
        self.chosen = chosen

    def route(self, x):
        weights, indices = self.router(x).softmax(-1).topk(self.chosen, dim=-1)
        return weights / weights.sum(-1, keepdim=True), indices


class Masked(Mixture):
    def forward(self, x):
        weights, indices = self.route(x)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            out = out + (weights * (indices == number)).sum(-1, keepdim=True) * expert(x)
        return out


class Scattered(Mixture):
    def forward(self, x):
        scores, indices = self.router(x).topk(self.chosen, dim=-1)
        full = torch.full((*x.shape[:-1], len(self.experts)), -torch.inf).scatter(-1, indices, scores).softmax(-1)
        return sum(full[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class Stacked(Mixture):
    def forward(self, x):
        weights, indices = self.route(x)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
        chosen = outputs.gather(-2, indices[..., None].expand(*indices.shape, 8))
        return (chosen * weights[..., None]).sum(-2)


class IndexAdd(Mixture):
    def forward(self, x):
        rows = x.reshape(-1, 8)
        weights, indices = self.route(rows)
        out = torch.zeros_like(rows)
        mask = F.one_hot(indices, len(self.experts)).permute(2, 1, 0)
        for number, expert in enumerate(self.experts):
            place, row = torch.where(mask[number])
            out.index_add_(0, row, expert(rows[None, row].reshape(-1, 8)) * weights[row, place, None])
        return out.reshape(x.shape)


class Hit(Mixture):
    """Experts that no row chose are left out of the loop, and those that it comes to in vain do nothing."""

    def forward(self, x):
        rows = x.reshape(-1, 8)
        weights, indices = self.route(rows)
        out = torch.zeros_like(rows)
        mask = F.one_hot(indices, len(self.experts)).permute(2, 1, 0)
        for number in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            place, row = torch.where(mask[number].squeeze(0))
            if row.numel() == 0:
                continue
            out.index_add_(0, row, self.experts[number](rows[None, row].reshape(-1, 8)) * weights[row, place, None])
        return out.reshape(x.shape)


class InPlace(Mixture):
    def forward(self, x):
        rows = x.reshape(-1, 8)
        weights, indices = self.route(rows)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            row, place = torch.where(indices == number)
            out[row] += weights[row, place, None] * expert(rows[row])
        return out.reshape(x.shape)


class Switch(Mixture):
    """One expert for each row, by a boolean mask."""

    def forward(self, x):
        weight, index = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = index == number
            out[mask] = expert(x[mask]) * weight[mask][:, None]
        return out


class Unweighted(Mixture):
    def forward(self, x):
        index = self.router(x).argmax(-1)
        return sum((index == number)[..., None] * expert(x) for number, expert in enumerate(self.experts))


SHAPES = (torch.randn(2, 7, 8),), (torch.randn(3, 5, 8),)


@pytest.mark.parametrize("expert", [MLP, Gated])
@pytest.mark.parametrize("kind", [Masked, Scattered, Stacked, IndexAdd, Hit, InPlace, Switch, Unweighted])
def test_fused(kind, expert):
    result = fused(kind(expert), *SHAPES)
    assert result.source.count("= SwitchLinear(") == 2 and result.applied.count("gather_mm") >= 1
    assert f"self.experts = {expert.__name__}(" in result.source
    assert "nonzero" not in result.source


class Residual(Masked):
    """The mean of all experts is added: those that were not chosen count too."""

    def forward(self, x):
        return super().forward(x) + sum(expert(x) for expert in self.experts) / 100


class Late(Mixture):
    """The router's choice is of a later value than the experts' weights."""

    def forward(self, x):
        weights, indices = self.route(x)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
        chosen = outputs.gather(-2, (indices[..., None] + 1).clamp(max=3).expand(*indices.shape, 8))
        return (chosen * weights[..., None]).sum(-2)


class Normed(MLP):
    def forward(self, x):
        return self.down(F.softmax(self.up(x), dim=-1))


class Mixed(Masked):
    def __init__(self):
        super().__init__(MLP)
        self.experts[2].forward = lambda x: self.experts[2].down(F.relu(self.experts[2].up(x)))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Late(), "not the sum of the chosen ones"),
        (lambda: Masked(Normed), "the experts compute softmax"),
        (Mixed, "compute different things"),
    ],
)
def test_declined(make, reason):
    result = fused(make(), *SHAPES)
    assert "SwitchLinear" not in result.source and any(reason in declined for declined in result.declined)


class Soft(Mixture):
    def forward(self, x):
        weights = self.router(x).softmax(-1)
        return sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


@pytest.mark.parametrize("make", [Soft, lambda: Residual(MLP)])
def test_every_expert_counts(make):
    assert "SwitchLinear" not in fused(make(), *SHAPES).source


def test_quantized(tmp_path):
    """Stacked as they are written, each expert's matrix quantized."""
    import mlx.core as mx

    import mlxport

    file = tmp_path / "moe.py"
    file.write_text(SOURCE)
    report = mlxport.port_folder(f"{file}:make", tmp_path / "out", quantize=8, q_group_size=32)
    assert report.parity is not None and report.parity.passed
    experts = mlxport.load(tmp_path / "out").experts
    assert experts.up.bits == 8 and experts.up.bias.shape == (3, 64) and experts.down.scales.shape == (3, 32, 2)
    assert experts.up.weight.dtype == mx.uint32


SOURCE = """
import torch
from torch import nn

class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))

class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.router, self.experts = nn.Linear(32, 3), nn.ModuleList(Expert() for _ in range(3))

    def forward(self, x):
        weights, indices = self.router(x).topk(2, dim=-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            out = out + (weights * (indices == number)).sum(-1, keepdim=True) * expert(x)
        return out

def make():
    torch.manual_seed(0)
    return MoE().eval(), (torch.randn(2, 7, 32),)
"""
