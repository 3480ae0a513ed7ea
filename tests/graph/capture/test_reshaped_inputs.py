"""Calls that change in place what a tensor is: followed, or refused by name."""

from __future__ import annotations

import copy

import mlx.core as mx
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import mlxport
from mlxport.errors import UnsupportedError
from mlxport.graph.capture.export import capture


class Forward(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("square", torch.rand(4, 4))

    def forward(self, x):
        return self.function(self, x)


def unsqueezed(m, x):
    x.unsqueeze_(0)
    x.add_(1)
    return x * 2


def put_back(m, x):
    x.unsqueeze_(0).add_(1)
    return x.squeeze_(0)


def a_local_one(m, x):
    y = x.clone()
    y.t_().add_(1)
    y.unsqueeze_(0)
    return y


def of_a_view(m, x):
    top = x[:2]
    top.t_()
    top.mul_(3)
    return x + 0, top


def jitter(m, x):
    covariance = x @ x.T + torch.eye(x.shape[0])
    covariance.diagonal().add_(1e-2)
    return torch.linalg.cholesky(covariance)


def diagonals(m, x):
    y = x[None] + torch.zeros(2, 1, 1)
    torch.diagonal(y, 1, dim1=-1, dim2=-2).fill_(5)
    torch.diagonal(y, 0, 0, 2).mul_(2)
    torch.diagonal(y, -1, 1, 2).zero_()
    return y


FOLLOWED = {
    "t_": lambda m, x: x.t_().add_(1),
    "transpose_": lambda m, x: x.transpose_(0, 1).mul(2),
    "swapaxes_": lambda m, x: x.swapaxes_(0, -1) - 1,
    "squeeze_": lambda m, x: x[:, None].squeeze_() + x.squeeze_(),
    "unsqueeze_": unsqueezed, "and back": put_back, "of its own": a_local_one, "of a view": of_a_view,
    "fill_diagonal_": lambda m, x: (x + 1).fill_diagonal_(7),
    "fill_diagonal_ of an input": lambda m, x: x.fill_diagonal_(0.5) * 2,
    "jitter": jitter, "diagonals": diagonals, "to .data": lambda m, x: x.data.add_(1) * 2 + x,
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_followed(name):
    module, example = Forward(FOLLOWED[name]), (torch.rand(3, 4),)
    port = mlxport.port(module, example)
    for size in (3, 4):
        given = torch.rand(size, 4)
        taken, original = mx.array(given.numpy()), copy.deepcopy(module)
        with torch.no_grad():
            wanted = original(given)
        got = port(taken)
        for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(wanted), strict=True):
            assert tuple(a.shape) == tuple(b.shape) and np.allclose(np.array(a), b.numpy(), atol=1e-4)
        if (
            given.is_contiguous() and given.shape == taken.shape
        ):  # of an input that torch leaves in another shape the port changes values only
            assert np.allclose(np.array(taken), given.numpy(), atol=1e-5)


@pytest.mark.parametrize(("name", "noted"), [("t_", True), ("unsqueeze_", True), ("and back", False)])
def test_what_the_port_leaves_to_the_caller_is_noted(name, noted):
    notes = capture(Forward(FOLLOWED[name]), (torch.rand(3, 4),)).notes
    assert any("leaves an input in another shape" in note for note in notes) is noted


def test_square_inputs():
    """Where a transposed input has the shape that it had."""
    port = mlxport.port(Forward(FOLLOWED["t_"]), (torch.rand(4, 4),))
    assert port(mx.arange(4.0).reshape(2, 2)).tolist() == [[1.0, 3.0], [2.0, 4.0]]


def assigned(m, x):
    y = x + 1
    y.data = y * 3
    return y


def of_a_buffer(m, x):
    m.square.t_()
    return x @ m.square


REFUSED = {
    "resize_": (lambda m, x: x.resize_(2, 6) * 1, "resize_ cannot be captured: use reshape"),
    "resize_as_": (lambda m, x: (x + 1).resize_as_(torch.zeros(4, 3)), "resize_as_ cannot be captured"),
    "of .data": (assigned, "x.copy_(y) for x.data = y"),
    "a buffer": (of_a_buffer, "t_ of a buffer or a parameter cannot be captured: use t, which"),
    "an attribute": (lambda m, x: m.table.add_(1) + x, "make the tensor a buffer (self.register_buffer"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    function, hint = REFUSED[name]
    module = Forward(function)
    module.table = torch.zeros(4)
    with pytest.raises(UnsupportedError) as caught:
        mlxport.port(module, (torch.rand(3, 4),))
    assert hint in caught.value.hint


def test_state_written_by_data():
    def forward(m, x):
        m.square.data.add_(1)
        return x.data @ m.square.data

    module = Forward(forward)
    port, x = mlxport.port(module, (torch.rand(3, 4),)), torch.rand(2, 4)
    for calls in (1, 2):
        wanted = x @ (module.square + calls)
        assert np.allclose(np.array(port(mx.array(x.numpy()))), wanted.numpy(), atol=1e-5)
