"""A module that keeps something between its calls: right from the second call on too, or refused by what it keeps."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import threading
import types

import mlx.core as mx
import numpy as np
import pytest
import torch
from torch import nn

import mlxport
from mlxport.errors import VerificationError
from mlxport.parity.held_state import HeldState


@dataclasses.dataclass
class Notes:
    seen: int = 0


class Keeps(nn.Module):
    """Computes what a function of it and its inputs does, and has places to keep things in."""

    def __init__(self, function):
        super().__init__()
        self.function, self.inner, self.linear = function, nn.Module(), nn.Linear(4, 4)
        self.count, self.cache, self.history, self.table = 0, torch.zeros(0, 4), [], {"sum": torch.zeros(3, 4)}
        self.inner.previous, self.first, self.notes = torch.zeros(3, 4), None, Notes()
        self.queue, self.lock, self.places = collections.deque([1.0, 2.0, 3.0]), threading.Lock(), None
        self.register_buffer("total", torch.zeros(3, 4))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, *inputs):
        return self.function(self, *inputs)


def counted(m, x):
    m.count += 1
    return x * m.count


def joined(m, x):
    m.cache = torch.cat([m.cache, x])
    return m.cache


def listed(m, x):
    m.history.append(x)
    return sum(m.history)


def in_a_dict(m, x):
    m.table["sum"] = m.table["sum"] + x
    return m.table["sum"]


def of_a_part(m, x):
    m.inner.previous, before = x, m.inner.previous
    return x - before


def of_an_object(m, x):
    m.notes.seen += 1
    return x * m.notes.seen


def first_of_all(m, x):
    if m.first is None:
        m.first = x.mean()
    return x - m.first


def rotated(m, x):
    m.queue.rotate(1)
    return x * m.queue[0]


def replaced(m, x):
    m.function = lambda m, x: x * 3
    return x * 2


def grown(m, x):
    m.count = max(m.count, x.shape[0])
    return x / m.count


STALE = {
    counted: "count", joined: "cache", listed: "history", in_a_dict: "table", of_a_part: "inner.previous",
    of_an_object: "notes", first_of_all: "first", rotated: "queue", replaced: "function", grown: "count",
}  # fmt: skip


@pytest.mark.parametrize("function", STALE, ids=lambda function: function.__name__)
def test_what_is_fixed_in_the_port_is_named(function):
    with pytest.raises(VerificationError, match="only when it is first called") as caught:
        mlxport.port(Keeps(function), (torch.rand(3, 4),))
    assert f"change the attribute {STALE[function]}, which a port holds fixed" in caught.value.message
    assert "register_buffer" in caught.value.hint and "report" not in caught.value.hint


def test_a_folder_too(tmp_path):
    with pytest.raises(VerificationError, match="change the attribute count, which") as caught:
        mlxport.port_folder(lambda: (Keeps(counted), (torch.rand(3, 4),)), tmp_path / "out")
    assert "register_buffer" in caught.value.hint and "first diverging" not in caught.value.message
    assert not (tmp_path / "out").exists()


def assigned(m, x):
    m.steps, m.total = m.steps + 1, m.total + x
    return m.total / m.steps


def written(m, x):
    m.steps.add_(1)
    m.total.mul_(0.5).add_(x)
    return m.linear(m.total) * m.steps


def last_map(m, x):
    m.first = x.softmax(-1)
    m.history.append(tuple(x.shape))
    return m.first @ m.linear.weight


def table_of_places(m, x):
    if m.places is None or m.places.shape[0] < x.shape[0]:
        m.places = torch.arange(x.shape[0])[:, None] / 7
    return x + m.places[: x.shape[0]]


def flagged(m, x):
    m.count, m.notes = 1, Notes(7)
    return m.linear(x)


@pytest.mark.parametrize("function", [assigned, written, last_map, table_of_places, flagged])
def test_right_in_every_call(function):
    module, sizes = Keeps(function).eval(), (3, 3, 3) if function in (assigned, written) else (3, 5, 2)
    before = HeldState(module)
    port = mlxport.port(module, (torch.rand(3, 4),))
    assert not HeldState(module).change_since(before)
    for size in sizes:
        x = torch.rand(size, 4)
        with torch.no_grad():
            wanted = module(x)
        assert np.allclose(np.array(port(mx.array(x.numpy()))), wanted.numpy(), atol=1e-5)


def test_state_of_a_quantized_port(tmp_path):
    class Runs(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 64)
            self.register_buffer("held", torch.zeros(2, 64))

        def forward(self, x):
            self.held = torch.tanh(self.linear(x) + self.held)
            return self.held

    report = mlxport.port_folder(lambda: (Runs(), (torch.randn(2, 64),)), tmp_path / "out", quantize=8)
    assert report.parity.passed
    assert {"example again", "example a third time", "other values"} <= {c.inputs for c in report.parity.comparisons}
    port = mlxport.load(tmp_path / "out")
    assert not np.array(port.held).any()  # as it is before its first call


CALLS = 0


def test_state_outside_of_the_module():
    def forward(m, x):
        global CALLS
        CALLS += 1
        return x * CALLS

    with pytest.raises(VerificationError, match="each time that it is made and called anew") as caught:
        mlxport.port(Keeps(forward), (torch.rand(3, 4),))
    assert "register_buffer" in caught.value.hint


def test_only_so_many_calls():
    """What the original refuses itself is no fault of the port, and is not silent."""

    def forward(m, x):
        m.count += 1
        if m.count > 1:
            raise RuntimeError("used up")
        return x * 2

    assert mlxport.port(Keeps(forward), (torch.ones(2, 4),))(mx.ones((3, 4))).tolist() == [[2.0] * 4] * 3


CHANGES = {
    "a number": (lambda m: setattr(m, "count", 1), "count"),
    "an attribute that is new": (lambda m: setattr(m, "new", None), "new"),
    "an attribute that is gone": (lambda m: delattr(m, "first"), "first"),
    "a tensor in place": (lambda m: m.table["sum"].add_(1), "table"),
    "an iterator": (lambda m: next(m.numbers), "numbers"),
    "an array": (lambda m: m.array.__setitem__(0, 5), "array"),
    "half precision": (lambda m: m.half_of.add_(1), "half_of"),
    "another part": (lambda m: setattr(m, "inner", nn.Identity()), "_modules"),
    "of an object": (lambda m: setattr(m.space.inner, "value", 2), "space"),
    "a set": (lambda m: m.set.add(3), "set"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_counts_as_a_change(name):
    module = Keeps(counted)
    module.numbers, module.array, module.half_of = itertools.count(), np.zeros(3), torch.zeros(2, dtype=torch.bfloat16)
    module.space, module.set = types.SimpleNamespace(inner=types.SimpleNamespace(value=1)), {1, 2}
    module.file, module.generator = open(__file__), (i for i in range(3))
    before = HeldState(module)
    assert not HeldState(module).change_since(before)
    change, attribute = CHANGES[name]
    change(module)
    found = HeldState(module).change_since(before)
    assert attribute in found.attributes and not found.kept
    module.file.close()


def test_buffers_and_parameters_apart():
    module = Keeps(counted)
    before = HeldState(module)
    with torch.no_grad():
        module.linear.weight.mul_(2)
        module.steps = module.steps + 1
    found = HeldState(module).change_since(before)
    assert set(found.kept) == {"linear.weight", "steps"} and not found.attributes
