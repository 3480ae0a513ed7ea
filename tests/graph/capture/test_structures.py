"""Dataclasses, named tuples and nested structures go in and come out as the original has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest
import torch
from torch import nn

import mlxport
from mlxport.errors import UnsupportedError


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None
    other: torch.Tensor | None = None


@dataclass
class Input:
    x: torch.Tensor
    scale: float = 1.0


@dataclass
class MLXInput:
    x: mx.array
    scale: float = 1.0


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)


class Returns(Linear):
    def forward(self, x):
        return Output(self.linear(x), hidden=x + 1)


class Nested(Linear):
    def forward(self, x):
        return Pair(self.linear(x), x + 1), [x * 2, {"key": Output(x * 3)}]


class Takes(Linear):
    def forward(self, given, more):
        return self.linear(given.x) * given.scale + more["y"] * more["factor"]


def test_a_dataclass_becomes_a_dict():
    module, x = Returns(), torch.randn(2, 4)
    got = mlxport.port(module, (x,))(mx.array(torch.cat([x, x]).numpy()))
    assert list(got) == ["logits", "hidden"] and got["hidden"].shape == (4, 4)
    assert np.allclose(got["logits"][:2], module(x).logits.detach().numpy(), atol=1e-6)


def test_one_within_other_structures():
    pair, (twice, inner) = mlxport.port(Nested(), (torch.randn(2, 4),))(mx.ones((3, 4)))
    assert type(pair) is tuple and (pair[1] == 2).all() and (twice == 2).all()
    assert list(inner["key"]) == ["logits"] and (inner["key"]["logits"] == 3).all()


def test_one_as_an_input():
    module, x, y = Takes(), torch.randn(2, 4), torch.randn(2, 4)
    port = mlxport.port(module, (Input(x, 2.0), {"y": y, "factor": 0.5}))
    x, y = torch.randn(5, 4), torch.randn(5, 4)
    got = port(MLXInput(mx.array(x.numpy()), 2.0), {"y": mx.array(y.numpy()), "factor": 0.5})
    assert np.allclose(got, module(Input(x, 2.0), {"y": y, "factor": 0.5}).detach().numpy(), atol=1e-6)
    with pytest.raises(ValueError, match=r"given_scale=1.0: this port was made with given_scale=2.0"):
        port(MLXInput(mx.array(x.numpy())), {"y": mx.array(y.numpy()), "factor": 0.5})
    with pytest.raises(ValueError, match=r"more_factor=2.0: this port"):
        port(MLXInput(mx.array(x.numpy()), 2.0), {"y": mx.array(y.numpy()), "factor": 2.0})


class Found(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        x = self.linear(x)
        places = (x[:, 0] > 0).nonzero()[:, 0]
        return places, x[places], x.mean(0)


class Sized(nn.Module):
    """Of one result of the inner module, only the number of rows is used."""

    def __init__(self):
        super().__init__()
        self.found = Found()

    def forward(self, x):
        places, rows, mean = self.found(x)
        return torch.zeros(places.shape[0], 2), rows, mean


def test_a_result_of_which_only_the_size_is_used():
    torch.manual_seed(0)
    module = Sized()
    port = mlxport.port(module, (torch.randn(9, 4),))
    x = torch.randn(12, 4)
    for ours, theirs in zip(port(mx.array(x.numpy())), module(x), strict=True):
        assert ours.shape == tuple(theirs.shape) and np.allclose(ours, theirs.detach().numpy(), atol=1e-6)


class Packed(torch.Tensor):
    """A weight for kernels of its own, as libraries that quantize bring them."""

    @staticmethod
    def __new__(cls, data):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)

    def __init__(self, data):
        self.packed = data

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].packed)
        raise NotImplementedError(f"{func} of a packed weight")


def test_weights_that_are_no_plain_tensors_are_refused_by_name():
    module = nn.Linear(4, 3)
    module.weight = nn.Parameter(Packed(torch.ones(3, 4, dtype=torch.int8)), requires_grad=False)
    with pytest.raises(UnsupportedError, match="a port of Linear cannot read its weights") as refused:
        mlxport.port(module.eval(), (torch.randn(2, 4),))
    assert "weight is a Packed" in refused.value.hint and "-q 4" in refused.value.hint
    assert "dequantize" not in refused.value.hint


class Grouped(Packed):
    """One that even a copy of the module is too much for."""

    def dequantize(self):
        return self.packed.float()

    def __deepcopy__(self, memo):
        raise RuntimeError("no copies")


def test_weights_that_have_their_values_again_are_told_so():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    module[1].weight = nn.Parameter(Grouped(torch.ones(3, 4, dtype=torch.int8)), requires_grad=False)
    with pytest.raises(UnsupportedError, match="cannot read its weights") as refused:
        mlxport.port(module.eval(), (torch.randn(2, 4),))
    assert "1.weight is a Grouped" in refused.value.hint and "weight.dequantize()" in refused.value.hint
    module[1].weight = nn.Parameter(module[1].weight.data.dequantize())
    mlxport.port(module, (torch.randn(2, 4),))
