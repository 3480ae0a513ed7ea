"""Arguments and members that are called like what the code of a port uses itself."""

from __future__ import annotations

import mlx.core as mx
import pytest
import torch
from mlx.utils import tree_flatten
from tests.graph.comparing import compared, randomised
from torch import nn

import mlxport
from mlxport.errors import UsageError

NAMES = "mx nn args min max len list int float range tuple math zip round pad check_inputs".split()


def _taking(name: str) -> nn.Module:
    namespace: dict = {"nn": nn}
    body = f"return (x * {name}).reshape(x.shape[0], -1).sum(1) + {name}.shape[0] * max(x.shape[0] - 2, 1)"
    if name == "max":
        body = body.replace("max(x.shape[0] - 2, 1)", "2")
    exec(f"class Taking(nn.Module):\n    def forward(self, x, {name}):\n        {body}\n", namespace)
    return namespace["Taking"]()


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_keeps_its_name_for_callers(name):
    module, args = _taking(name), (torch.randn(4, 3), torch.randn(4, 3))
    port = mlxport.port(module, args)
    compared(module, port, args)
    compared(module, port, (args[0],), {name: args[1]})
    compared(module, port, (torch.randn(7, 5), torch.randn(7, 5)))
    with pytest.raises(ValueError, match=f"{name} must be an mx.array of shape"):
        port(mx.ones((4, 3)), mx.ones((4, 5)))


class Hidden(nn.Module):
    """Its code needs what the names of its arguments hide: ``mx.sin``, ``nn.gelu``, ``min``."""

    def forward(self, mx, /, nn, *, min, **more):
        return torch.nn.functional.gelu(mx).sin() * nn + min[: mx.shape[0] // 2].sum() + more["args"]


def test_a_name_that_the_body_needs():
    module = Hidden()
    x = [torch.randn(4, 3) for _ in range(4)]
    port = mlxport.port(module, (x[0],), {"nn": x[1], "min": x[2], "args": x[3]})
    compared(module, port, (x[0],), {"nn": x[1], "min": x[2], "args": x[3]})
    with pytest.raises(ValueError, match="mx must be an mx.array"):
        port(x[0], nn=mx.ones((4, 3)), min=mx.ones((4, 3)), args=mx.ones((4, 3)))


class Packed(nn.Module):
    def forward(self, mx, *args):
        return mx["min"].sin() * mx["a"] + args[0]


def test_parts_of_arguments():
    module, x = Packed(), torch.randn(4, 3)
    args = ({"min": x, "a": x + 1}, x)
    compared(module, mlxport.port(module, args), args)


class Members(nn.Module):
    """Members called like words of Python, and like methods of MLX's modules."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"class": nn.Linear(4, 4), "import": nn.Sequential(nn.Linear(4, 4), nn.ReLU())})
        setattr(self, "def", nn.Parameter(torch.ones(4)))
        self.register_buffer("lambda", torch.ones(4))
        self.update, self.items, self.freeze, self.state = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        x = self.update(self.parts["import"](self.parts["class"](x))) * getattr(self, "def") + getattr(self, "lambda")
        return self.state(self.freeze(self.items(x)))


def test_members():
    module = randomised(Members())
    port = mlxport.port(module, (torch.randn(3, 4),))
    compared(module, port, (torch.randn(5, 4),))
    assert {"parts.class.weight", "def", "lambda", "update.bias"} <= set(_paths(port))


def _paths(port) -> list[str]:
    return [path for path, _ in tree_flatten(port.parameters())]


class Caught(nn.Module):
    def forward(self, x, **more):
        return x * more["class"]


def test_an_argument_that_no_call_can_name():
    with pytest.raises(UsageError, match="an argument called 'class', which is no name in Python"):
        mlxport.port(Caught(), {"x": torch.ones(3), "class": torch.ones(3)})
