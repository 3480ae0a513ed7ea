"""Modules whose states are sums, maxima, windows or products are called once for all tokens."""

from __future__ import annotations

import mlx.core as mx
import pytest
import torch
from mlx_lm.models.cache import make_prompt_cache
from steps import WIDTH, Pair
from test_token_states import InModules, Recurrent
from torch import nn

HEADS, SIZE = 4, 8


class Carried(InModules):
    """Keeps what ``step`` gives beside its output, from ``start`` on."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.maps = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    @property
    def more(self):
        return [getattr(self, name) for name in ("kept_0", "kept_1") if hasattr(self, name)]

    def forward(self, x, state):
        held = self.start(x.shape[0]) if self.kept is None else (self.kept, *self.more)
        made = []
        for t in range(x.shape[1]):
            y, held = self.step(x[:, t], held)
            made.append(y)
        self.kept = held[0]
        for place, item in enumerate(held[1:]):
            setattr(self, f"kept_{place}", item)
        return torch.stack(made, dim=1)


class Gated(Carried):
    """RG-LRU: a sum that decays by as much as the token says, of what a window of tokens gives."""

    def start(self, batch):
        return torch.zeros(batch, WIDTH, 3), torch.zeros(batch, WIDTH)

    def step(self, x, held):
        window, state = held
        window = torch.cat([window, x[..., None]], dim=-1)
        x = window @ torch.tensor([0.5, -1.0, 0.25, 1.0])
        decay = torch.sigmoid(self.maps[0](x))
        state = decay * state + torch.sqrt(1 - decay**2) * self.maps[1](x)
        return state * self.maps[2](x), (window[..., 1:], state)


class Products(Carried):
    """Linear attention: what a head remembers fades by a number of its own."""

    def start(self, batch):
        return (torch.zeros(batch, HEADS, SIZE, SIZE),)

    def step(self, x, held):
        query, key, value = (part(x).view(-1, HEADS, SIZE) for part in self.maps[:3])
        state = torch.tensor([0.9, 0.5, 0.1, 1.0])[:, None, None] * held[0] + key[..., None] * value[:, :, None]
        return (query[:, :, None] @ state).reshape(x.shape) / 10, (state,)


class Stabilized(Carried):
    """mLSTM: sums whose exponents are kept small by the largest of them so far."""

    def start(self, batch):
        zeros = torch.zeros(batch, HEADS, SIZE)
        return torch.zeros(batch, HEADS, SIZE, SIZE), zeros, torch.zeros(batch, HEADS)

    def step(self, x, held):
        total, norm, largest = held
        query, key, value, gates = (part(x).view(-1, HEADS, SIZE) for part in self.maps)
        fall = nn.functional.logsigmoid(gates[..., 0])
        top = torch.maximum(fall + largest, 4 * gates[..., 1])
        old, new = torch.exp(fall + largest - top), torch.exp(4 * gates[..., 1] - top)
        total = old[..., None, None] * total + new[..., None, None] * (key[..., None] * value[:, :, None])
        norm = old[..., None] * norm + new[..., None] * key
        weight = torch.maximum((query * norm).sum(-1, keepdim=True).abs(), torch.exp(-top)[..., None])
        return ((query[:, :, None] @ total)[:, :, 0] / weight).reshape(x.shape), (total, norm, top)


@pytest.mark.parametrize("kind", [Gated, Products, Stabilized])
def test_all_tokens_are_computed_in_one_call(tmp_path, kind):
    pair = Pair(Recurrent(kind), tmp_path)
    assert "each_token" not in pair.source
    pair.check()
    text = mx.array([[5, 9, 2, 7] * 40])
    with torch.no_grad():
        wanted = mx.array(pair.model(torch.tensor(text.tolist())).logits.numpy())
    assert mx.allclose(pair.ported(text, cache=make_prompt_cache(pair.ported)), wanted, rtol=1e-3, atol=1e-3)
