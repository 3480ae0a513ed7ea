"""Products with a matrix chosen for each row become mx.gather_mm."""

from __future__ import annotations

import pytest
import torch
from fusing import fused
from torch import nn

AUTO = torch.export.Dim.AUTO


class Experts(nn.Module):
    """A top-2 mixture of four experts."""

    def __init__(self, turned=False):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.router = nn.Linear(8, 4, bias=False)
        self.up = nn.Parameter(torch.randn(*((4, 8, 12) if turned else (4, 12, 8)), generator=generator) * 0.3)
        self.down = nn.Parameter(torch.randn(*((4, 12, 8) if turned else (4, 8, 12)), generator=generator) * 0.3)

    def forward(self, x):
        weights, experts = self.router(x).softmax(-1).topk(2, dim=-1)
        return self.mix(x, weights, experts)


class Batched(Experts):
    def mix(self, x, weights, experts):
        rows, chosen = x.repeat_interleave(2, dim=0), experts.reshape(-1)
        hidden = torch.relu(torch.bmm(self.up[chosen], rows.unsqueeze(-1)).squeeze(-1))
        out = torch.bmm(self.down[chosen], hidden.unsqueeze(-1)).squeeze(-1) * weights.reshape(-1, 1)
        return out.view(x.shape[0], 2, 8).sum(1)


class BatchedTurned(Experts):
    def __init__(self):
        super().__init__(turned=True)

    def mix(self, x, weights, experts):
        rows, chosen = x.repeat_interleave(2, dim=0), experts.reshape(-1)
        hidden = torch.relu(torch.bmm(rows.unsqueeze(1), self.up[chosen]))
        out = torch.bmm(hidden, self.down[chosen]).squeeze(1) * weights.reshape(-1, 1)
        return out.view(x.shape[0], 2, 8).sum(1)


class Einsum(Experts):
    def mix(self, x, weights, experts):
        hidden = torch.relu(torch.einsum("td,tkod->tko", x, self.up[experts]))
        return torch.einsum("tk,tko->to", weights, torch.einsum("tki,tkoi->tko", hidden, self.down[experts]))


class Matmul(Experts):
    def mix(self, x, weights, experts):
        hidden = torch.relu(x[:, None, None] @ self.up[experts].transpose(-1, -2))
        return ((hidden @ self.down[experts].mT).squeeze(2) * weights[..., None]).sum(1)


@pytest.mark.parametrize("kind", [Batched, BatchedTurned, Einsum, Matmul])
def test_gathered_matrices(kind):
    inputs = (torch.randn(6, 8),), (torch.randn(9, 8),)
    result = fused(kind(), *inputs, dynamic={"x": {0: AUTO}})
    assert result.source.count("= SwitchLinear(") == 2 and result.applied.count("gather_mm") == 2
    assert "self.up[" not in result.source


class Weighted(Experts):
    def mix(self, x, weights, experts):
        return self.up[experts].sum((1, 2, 3))


def test_gathered_weights_without_a_product():
    assert "gather_mm" not in fused(Weighted(), (torch.randn(6, 8),)).source


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_experts_of_transformers(implementation):
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4,
    )  # fmt: skip
    torch.manual_seed(0)
    config._experts_implementation = implementation
    module = transformers.MixtralModel(config)
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1)

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = module

        def forward(self, input_ids):
            return self.model(input_ids=input_ids, use_cache=False).last_hidden_state

    result = fused(Last(), (torch.arange(10).reshape(2, 5),), (torch.arange(21).reshape(3, 7),))
    assert result.source.count("= SwitchLinear(") == 2 and "mx.fast.rope(" in result.source
    assert 'mask="causal"' in result.source and "histc" not in result.source


class Hit(nn.Module):
    """A loop over the experts that some row chose, whose matrices are stacked; ``flat``: below one another."""

    def __init__(self, flat):
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(8, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 24, 8)), nn.Parameter(torch.randn(4, 8, 12))
        self.bias = nn.Parameter(torch.randn(4, 8))
        if flat:
            self.up = nn.Parameter(self.up.reshape(-1, 8))

    def forward(self, x):
        rows = x.reshape(-1, 8)
        weights, indices = self.router(rows).softmax(-1).topk(2)
        out = torch.zeros_like(rows)
        mask = torch.nn.functional.one_hot(indices, 5).permute(2, 1, 0)  # one more than there are
        for number in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            number = number[0]
            place, row = torch.where(mask[number])
            gate, up = torch.nn.functional.linear(rows[row], self.up.view(4, 24, 8)[number]).chunk(2, dim=-1)
            made = (torch.nn.functional.silu(gate) * up) @ self.down[number].t() + self.bias[number]
            out.index_add_(0, row, made * weights[row, place, None])
        return out.reshape(x.shape)


@pytest.mark.parametrize("flat", [False, True])
def test_a_loop_over_chosen_experts_is_run_once(flat):
    result = fused(Hit(flat), (torch.randn(2, 7, 8),), (torch.randn(3, 5, 8),))
    assert result.source.count("= SwitchLinear(") == 2 and "nonzero" not in result.source
