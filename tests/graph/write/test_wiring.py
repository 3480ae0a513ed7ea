"""How modules are wired: shared and tied ones, repeated calls, clashing names, buffers that change, signatures."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as mnn
import pytest
import torch
from comparing import compared, randomised
from mlx.utils import tree_flatten
from torch import nn

import mlxport
from mlxport.graph.write.port_weights import to_mlx


def paths(ported: mnn.Module) -> set[str]:
    return {name for name, _ in tree_flatten(ported.parameters())}


class Tied(nn.Module):
    """An embedding whose weight is the head's, which is nested and has a bias of its own."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 11))
        self.head[1].weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.norm(self.embed(ids)))


class Predictions(nn.Module):
    def __init__(self, embed):
        super().__init__()
        self.dense = nn.Linear(6, 6)
        self.decoder = nn.Linear(6, 11)
        self.decoder.weight = embed.weight

    def forward(self, x):
        return self.decoder(torch.tanh(self.dense(x)))


class TiedInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.cls = Predictions(self.embed)

    def forward(self, ids):
        return self.cls(self.embed(ids))


@pytest.mark.parametrize("make", [Tied, TiedInside])
def test_a_tied_head_is_the_embedding(make):
    module = randomised(make())
    ids = torch.arange(8).reshape(2, 4)
    ported = mlxport.port(module, (ids,))
    compared(module, ported, (ids,))
    assert "as_linear(" in ported.source
    assert paths(ported) == {name for name, _ in module.named_parameters()}
    mnn.quantize(ported, group_size=32, bits=8, class_predicate=lambda _, m: False)
    ported(to_mlx(ids))


class Shared(nn.Module):
    """One module under two parents."""

    def __init__(self):
        super().__init__()
        self.box = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
        self.decoder = Decoder(self.box)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.box(x)) + self.decoder(x)


class Decoder(nn.Module):
    def __init__(self, box):
        super().__init__()
        self.proj = nn.Linear(6, 6)
        self.box = box
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.box(self.proj(x)))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x, scale=None):
        y = torch.relu(self.a(x))
        return self.b(y if scale is None else y * scale)


class Twice(nn.Module):
    """The same module called with and without an argument."""

    def __init__(self):
        super().__init__()
        self.mlp = Mlp()

    def forward(self, x):
        y = self.mlp(x)
        y = self.mlp(y)
        return self.mlp(y, scale=x.mean(-1, keepdim=True))


class SharedMlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = Mlp()
        self.inner = nn.Module()
        self.inner.mlp = self.mlp
        self.user = Uses(self.mlp)

    def forward(self, x):
        return self.user(self.mlp(x))


class Uses(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.mlp = mlp

    def forward(self, x):
        return self.norm(x) + self.mlp(x)


class Pair(nn.Module):
    """Calls that use one or both of a module's results."""

    def __init__(self):
        super().__init__()
        self.two = TwoResults()

    def forward(self, x):
        a, b = self.two(x)
        c, _ = self.two(a + b)
        return c


class TwoResults(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(6, 12)

    def forward(self, x):
        first, second = self.lin(x).chunk(2, -1)
        return first.tanh(), second.sigmoid()


@pytest.mark.parametrize("make", [Shared, Twice, SharedMlp, Pair])
def test_modules_used_in_several_places(make):
    module = randomised(make())
    ported = mlxport.port(module, (torch.randn(3, 6),))
    compared(module, ported, (torch.randn(5, 6),))
    assert paths(ported) == {name for name, _ in module.named_parameters()}


def test_a_repeated_call_keeps_its_class():
    ported = mlxport.port(randomised(Twice()), (torch.randn(3, 6),))
    assert "self.mlp(" in ported.source


class Clashes(nn.Module):
    """Names that Python, nn.Module or the port's own code takes."""

    def __init__(self):
        super().__init__()
        self.update = nn.Linear(4, 4)
        self.items = nn.Linear(4, 4)
        self.blocks = nn.ModuleDict({"a-b": nn.Linear(4, 4), "1": nn.Linear(4, 4)})
        self.numbers = nn.ModuleDict({"1": nn.Linear(4, 4), "3": nn.Linear(4, 4)})
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))])
        self.named = nn.ParameterDict({"x": nn.Parameter(torch.ones(4)), "_y": nn.Parameter(torch.ones(4))})
        self._hidden = nn.Parameter(torch.ones(4))
        self.register_buffer("_offset", torch.ones(4))

    def forward(self, x):
        x = self.items(self.update(x)) + self._hidden * self._offset
        for block in self.blocks.values():
            x = block(x)
        x = self.numbers["3"](self.numbers["1"](x)) * self.weights[0] + self.weights[1]
        return x * self.named["x"] + self.named["_y"]


def test_names_that_clash():
    module = randomised(Clashes())
    ported = mlxport.port(module, (torch.randn(3, 4),))
    compared(module, ported, (torch.randn(5, 4),))
    original = set(module.state_dict())
    assert {"update.weight", "items.bias", "blocks.a-b.weight", "weights.0"} <= paths(ported)
    assert paths(ported) - original == {"hidden", "offset", "named.y", "blocks.m1.weight", "blocks.m1.bias"}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = check_inputs()
        self.list = ModelArgs()

    def forward(self, x):
        return self.list(self.inner(x))


class check_inputs(nn.Module):  # noqa: N801
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return self.lin(x)


class ModelArgs(check_inputs):
    def forward(self, x):
        return self.lin(x) + 1


def test_class_names_that_clash():
    module = randomised(Model())
    ported = mlxport.port(module, (torch.randn(3, 4),))
    compared(module, ported, (torch.randn(5, 4),))
    assert type(ported).__name__ == "Model"


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.calls += 1
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return x - self.mean


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Counter()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return self.lin(self.inner(x))


def test_buffers_change_as_the_originals():
    module = randomised(Counting())
    ported = mlxport.port(module, (torch.randn(3, 4),), verify=False)
    for _ in range(3):
        compared(module, ported, (torch.randn(5, 4),))
    assert ported.inner.calls.item() == module.inner.calls.item() == 3


class Writes(nn.Module):
    def forward(self, x, out):
        out.add_(x)
        return x * 2


def test_an_input_that_is_written():
    module = Writes().eval()
    ported = mlxport.port(module, (torch.ones(3, 4), torch.zeros(3, 4)), verify=False)
    x, out = mx.ones((5, 4)), mx.zeros((5, 4))
    assert mx.array_equal(ported(x, out), x * 2)
    assert mx.array_equal(out, x)


class Outputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x):
        y = self.lin(x)
        return {"x": x, "none": None, "two": [y, (y + 1, 3)], "table": self.table, "flag": True, "shape": x.shape[0]}


class Nested(nn.Module):
    def forward(self, pair, options, *rest, scale=2.0, **more):
        first, second = pair
        return (first + second) * options["a"]["b"] * scale + rest[0] - more["extra"] * rest[1]


class Functional(nn.Module):
    def forward(self, x, y=None):
        return torch.softmax(x, -1) if y is None else x + y


class Constant(nn.Module):
    def forward(self, x):
        return torch.arange(6).reshape(2, 3), x.new_zeros(2)


t = torch.randn
SIGNATURES = {
    "outputs": (Outputs, (t(3, 4),), {}, (t(5, 4),), {}),
    "nested": (
        Nested, ((t(3, 4), t(3, 4)), {"a": {"b": t(4)}}, t(3, 4), t(4)), {"extra": t(3, 1)},
        ((t(5, 4), t(5, 4)), {"a": {"b": t(4)}}, t(5, 4), t(4)), {"extra": t(5, 1)},
    ),
    "functional": (Functional, (t(3, 4),), {}, (t(6, 4),), {}),
    "functional, None given": (Functional, (t(3, 4), None), {}, (t(6, 4), None), {}),
    "functional, by name": (Functional, (), {"y": t(3, 4), "x": t(3, 4)}, (), {"x": t(6, 4), "y": t(6, 4)}),
    "constant": (Constant, (t(3, 4),), {}, (t(6, 4),), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_and_structures(name):
    make, args, kwargs, other, more = SIGNATURES[name]
    module = randomised(make())
    ported = mlxport.port(module, args, kwargs)
    compared(module, ported, args, kwargs)
    compared(module, ported, other, more)


def test_a_layer_that_is_the_model():
    module = randomised(nn.Linear(4, 3))
    ported = mlxport.port(module, (torch.randn(2, 4),))
    compared(module, ported, (torch.randn(5, 4),))
    assert {name.rpartition(".")[2] for name in paths(ported)} == {"weight", "bias"}


class Literals(nn.Module):
    def forward(self, x):
        mean = torch.tensor([0.485, 0.456, 0.406], device=x.device).view(1, 3, 1)
        return (x - mean) * torch.tensor(2.5) + torch.tensor([[1], [2], [3]])


def test_constants_of_the_code_stay_in_the_code():
    ported = mlxport.port(Literals(), (torch.randn(2, 3, 4),))
    compared(Literals(), ported, (torch.randn(5, 3, 7),))
    assert not paths(ported)
    assert "2.5" in ported.source and "0.485" in ported.source
