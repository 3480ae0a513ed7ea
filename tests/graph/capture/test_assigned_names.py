"""Names of a statement that assigns several are those of their values, by position; what is not certain has none."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import mlxport


def body(forward) -> str:
    """The emitted body of a module whose forward is ``forward``."""

    class Module(nn.Module):
        pass

    Module.forward = forward
    source = mlxport.port(Module(), (torch.randn(3, 5, 8),), verify=False).source
    return source[source.index("def __call__") : source.index("Model = ")]


def test_places_in_a_tensor():
    def forward(self, x):
        parts = x.reshape(x.shape[0], x.shape[1], 2, 4).permute(2, 0, 1, 3)
        first, second = parts[0], parts[1]
        return torch.tanh(second) + second, first * first

    text = body(forward)
    assert re.search(r"first = .*0", text) and re.search(r"second = .*1", text)
    assert "mx.tanh(second) + second" in text and "square(first)" in text or "first * first" in text


def test_parts_of_a_split_in_a_loop():
    def forward(self, x):
        for _ in range(2):
            gate, up = x.chunk(2, dim=-1)
            x = torch.cat([torch.tanh(up), gate * 2], dim=-1)
        return x

    assert body(forward).count("[mx.tanh(up), gate * 2]") == 2


def test_expressions_one_after_another():
    def forward(self, x):
        low, high = x.amin(-1), x.amax(-1)
        low, high = high * 2, low - 1
        return high - low, low + high

    text = body(forward)
    assert re.search(r"low\w* = high \* 2", text) and re.search(r"high = low\w* - 1", text)


@pytest.mark.parametrize("depth_first", [False, True])
def test_what_a_function_returns_has_no_name_of_another(depth_first):
    def parts(x):
        shares = torch.softmax(x, -1)
        total, twice = (shares * x).sum(-1), (shares * 2).sum(-1)
        return (twice, total, shares) if depth_first else (total, twice, shares)

    def forward(self, x):
        colour, depth, weights = parts(x)
        return {"colour": colour + 1, "depth": depth - 1, "weights": weights * 3}

    text = body(forward)
    assert not re.search(r"\b(colour|depth|weights) = ", text)
