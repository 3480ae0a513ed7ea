"""Loops over a length: rolled up, the length free, and right at lengths that the example does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from torch import nn

import mlxport


class Recurrence(nn.Module):
    """A recurrence of a decay that is spelled in the ways that the tests are about."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Linear(3, 4)
        self.w = nn.Linear(4, 4)

    def step(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.u(x) + self.w(h))


class Appended(Recurrence):
    def forward(self, x: torch.Tensor) -> Any:
        h, ys = x.new_zeros(x.shape[0], 4), []
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
            ys.append(h)
        return torch.stack(ys, 1), h


class Backward(Recurrence):
    def forward(self, x: torch.Tensor) -> Any:
        h, ys = x.new_zeros(x.shape[0], 4), []
        for t in reversed(range(x.shape[1])):
            h = self.step(x[:, t], h)
            ys.append(h)
        return torch.stack(ys[::-1], 1)


class Inserted(Recurrence):
    def forward(self, x: torch.Tensor) -> Any:
        h, ys = x.new_zeros(x.shape[0], 4), []
        for t in range(x.shape[1] - 1, -1, -1):
            h = self.step(x[:, t], h)
            ys.insert(0, h)
        return torch.stack(ys, 1)


class BothWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.GRUCell(3, 4), nn.GRUCell(3, 4)

    def forward(self, x: torch.Tensor) -> Any:
        steps = x.unbind(1)
        h, hs = None, []
        for s in steps:
            h = self.there(s, h)
            hs.append(h)
        g, gs = None, []
        for s in reversed(steps):
            g = self.back(s, g)
            gs.append(g)
        return torch.cat([torch.stack(hs, 1), torch.stack(gs[::-1], 1)], -1)


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(3, 4), nn.LSTMCell(4, 4)])

    def forward(self, x: torch.Tensor) -> Any:
        states = [(x.new_zeros(x.shape[0], 4), x.new_zeros(x.shape[0], 4)) for _ in self.cells]
        ys = []
        for x_t in x.transpose(0, 1):
            for i, cell in enumerate(self.cells):
                states[i] = cell(x_t, states[i])
                x_t = states[i][0]
            ys.append(x_t)
        return torch.stack(ys, 1), states


class LayerByLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GRUCell(3, 4), nn.GRUCell(4, 5)

    def forward(self, x: torch.Tensor) -> Any:
        xs = list(x.unbind(1))
        for cell in (self.first, self.second):
            h, ys = x.new_zeros(x.shape[0], cell.hidden_size), []
            for x_t in xs:
                h = cell(x_t, h)
                ys.append(h)
            xs = ys
        return torch.stack(xs, 1)


class Tuples(Recurrence):
    def forward(self, x: torch.Tensor) -> Any:
        h, c = x.new_zeros(x.shape[0], 4), x.new_ones(x.shape[0], 4)
        ys = []
        for t in range(x.shape[1]):
            h, c = self.step(x[:, t], c), h + 0.5 * c
            ys.append((h, c.sum(-1)))
        hs, cs = zip(*ys, strict=True)
        return torch.stack(hs, 1), torch.stack(cs, 1)


class Filled(Recurrence):
    def forward(self, x: torch.Tensor) -> Any:
        y, h = x.new_zeros(x.shape[0], x.shape[1], 4), x.new_zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
            y[:, t] = h
        return y


class Peeled(Recurrence):
    def forward(self, x: torch.Tensor) -> Any:
        h = torch.tanh(self.u(x[:, 0]))
        ys = [h]
        for t in range(1, x.shape[1]):
            h = self.step(x[:, t], h)
            ys.append(h)
        return torch.stack(ys, 1)


class FromNone(Recurrence):
    def forward(self, x: torch.Tensor) -> Any:
        h, ys = None, []
        for t in range(x.shape[1]):
            if h is None:
                h = torch.zeros(x.shape[0], 4)
            h = self.step(x[:, t], h)
            ys.append(h.unsqueeze(1))
        return torch.cat(ys, dim=1)


class Forced(Recurrence):
    """Teacher forcing: a turn takes the target of the one before."""

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> Any:
        h, previous, ys = x.mean(1) @ self.u.weight.T, torch.zeros(x.shape[0], 3), []
        for t in range(target.size(1)):
            h = self.step(previous, h)
            ys.append(h)
            previous = target[:, t]
        return torch.stack(ys, dim=1)


class Growing(Recurrence):
    def forward(self, x: torch.Tensor) -> Any:
        h = x.new_zeros(x.shape[0], 4)
        y = h.unsqueeze(1)
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
            y = torch.cat([y, h.unsqueeze(1)], dim=1)
        return y


class Scan(nn.Module):
    """Two turns back, and sizes of the length within a turn."""

    def forward(self, x: torch.Tensor) -> Any:
        a, b = x[:, 0], x[:, 1]
        ys = [a, b]
        for t in range(2, x.shape[1]):
            ys.append(0.5 * ys[-1] - 0.25 * ys[-2] + x[:, t] * x.mean(1))
        return torch.stack(ys, 1)


class Attending(nn.Module):
    """The length is a size within the turns, too."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.cell = nn.Linear(4, 3), nn.GRUCell(3, 4)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Any:
        h, all_weights = x.new_zeros(x.shape[0], 4), []
        weights = torch.zeros(x.shape[0], x.shape[1])
        for t in range(x.shape[1]):
            scores = (x @ self.q(h).unsqueeze(-1)).squeeze(-1) + weights
            weights = scores.masked_fill(~mask, -1e9).softmax(-1)
            h = self.cell((weights.unsqueeze(1) @ x).squeeze(1) + x[:, t], h)
            all_weights.append(weights)
        return h, torch.stack(all_weights, 1)


class Helper(Recurrence):
    """The loop stands in a function that the forward calls, and the number of the turn counts."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.u(x).sum() + self.scan(x)

    def scan(self, x: torch.Tensor) -> Any:
        total = torch.zeros(x.shape[0], 4)
        for t, x_t in enumerate(x.unbind(1)):
            total = total * 0.9 + self.u(x_t) * (t + 1)
        return total


class RWKV(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decay, self.first = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))
        self.k, self.v, self.r = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        B, T, C = x.shape
        k, v, r = self.k(x), self.v(x), torch.sigmoid(self.r(x))
        aa, bb, pp = torch.zeros(B, C), torch.zeros(B, C), torch.full((B, C), -1e38)
        w, out = -torch.exp(self.decay), torch.empty(B, T, C)
        for t in range(T):
            kk, vv = k[:, t], v[:, t]
            ww = self.first + kk
            p = torch.maximum(pp, ww)
            e1, e2 = torch.exp(pp - p), torch.exp(ww - p)
            out[:, t, :] = (e1 * aa + e2 * vv) / (e1 * bb + e2)
            ww = pp + w
            p = torch.maximum(ww, kk)
            e1, e2 = torch.exp(ww - p), torch.exp(kk - p)
            aa, bb, pp = e1 * aa + e2 * vv, e1 * bb + e2, p
        return r * out


Inputs = Callable[[int, int], tuple[torch.Tensor, ...]]

LENGTHS: list[tuple[type[nn.Module], Inputs]] = [
    *((kind, lambda B, L: (torch.randn(B, L, 3),)) for kind in (
        Appended, Backward, Inserted, BothWays, TwoLayers, LayerByLayer, Tuples, Filled, Peeled, FromNone, Growing,
        Scan, Helper,
    )),
    (RWKV, lambda B, L: (torch.randn(B, L, 4),)),
    (Forced, lambda B, L: (torch.randn(B, 5, 3), torch.randn(B, L, 3))),
    (Attending, lambda B, L: (torch.randn(B, L, 3), torch.arange(L).expand(B, L) < L - 1)),
]  # fmt: skip


def compare(port: Any, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """The port gives what the module gives."""
    with torch.no_grad():
        wanted = torch.utils._pytree.tree_leaves(module(*inputs))
    made = torch.utils._pytree.tree_leaves(port(*(mx.array(item.numpy()) for item in inputs)))
    assert len(made) == len(wanted)
    for ours, theirs in zip(made, wanted, strict=True):
        np.testing.assert_allclose(np.array(ours), theirs.numpy(), rtol=2e-5, atol=2e-6)


def loops(source: str) -> list[str]:
    return [line.strip() for line in source.splitlines() if line.strip().startswith("for ") and line.endswith(":")]


@pytest.mark.parametrize(("kind", "inputs"), LENGTHS, ids=[kind.__name__ for kind, _ in LENGTHS])
def test_length_of_a_loop_is_free(kind: type[nn.Module], inputs: Inputs) -> None:
    torch.manual_seed(0)
    module = kind().eval()
    port = mlxport.port(module, inputs(2, 6))
    for batch, length in ((2, 6), (3, 9), (2, 4), (5, 17)):
        compare(port, module, inputs(batch, length))
    assert loops(port.source), port.source


class Euler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> Any:
        for _ in range(10):
            x = x + 0.1 * self.f(x)
        return x


class Decoder(nn.Module):
    """Two states start from one value, and what a turn chooses is what the next one takes."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.cell, self.out = nn.Embedding(11, 6), nn.LSTMCell(6, 3), nn.Linear(3, 11)

    def forward(self, x: torch.Tensor) -> Any:
        h = c = x.mean(1)
        token, logits = torch.zeros(x.shape[0], dtype=torch.long), []
        for _ in range(5):
            h, c = self.cell(self.emb(token), (h, c))
            scores = self.out(h)
            token = scores.argmax(-1)
            logits.append(scores)
        return torch.stack(logits, 1), token


@pytest.mark.parametrize("kind", [Euler, Decoder])
def test_fixed_number_of_turns_is_one_loop(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = kind().eval()
    port = mlxport.port(module, (torch.randn(2, 4, 3),))
    compare(port, module, (torch.randn(3, 7, 3),))
    assert any(line.startswith("for _ in range(") for line in loops(port.source)), port.source
