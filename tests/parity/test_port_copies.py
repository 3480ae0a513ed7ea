"""A port is made and verified on copies: the caller's module, example and generators are afterwards as before."""

from __future__ import annotations

import copy
import math
import random
import threading

import mlx.core as mx
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import mlxport
from mlxport.errors import VerificationError
from mlxport.graph.write.port_weights import to_mlx


def x():
    return torch.rand(3, 4)


class Forward(nn.Module):
    """A module with a layer and a counter that computes what a function of it and its inputs does."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("history", torch.zeros(3, 4))
        self.calls, self.seen, self.lock, self.numpy = 0, [], threading.Lock(), np

    def forward(self, *inputs):
        return self.function(self, *inputs)


def added(m, x):
    x += 1
    return x


def multiplied(m, x):
    x.mul_(2)
    return x + 1


def of_a_view(m, x, y):
    return x[:, :2].add_(y) * 1 + x[:, 2:]


def normalised(m, x):
    x -= x.mean(0, keepdim=True)
    x /= 3
    return m.linear(x)


def read_before(m, x):
    y = x.sum()
    x.add_(1)
    return y


def renamed(m, a, b):
    a, b = b, a
    a.mul_(2)
    b.add_(a)
    return a - b


def residual(m, x):
    h = m.linear(x)
    h += x
    x -= h
    return h, x


def popped(m, batch):
    value = batch.pop("x")
    batch["y"] = value.mul_(2)
    return batch["y"] + 1


def in_a_list(m, parts):
    for part in parts:
        part.mul_(2)
    return sum(parts)


def counted(m, x):
    m.count += 1
    m.calls += 1
    m.seen.append(m.calls)
    return x * m.count


def remembered(m, x):
    y = x + m.history[:1]
    m.history.mul_(0.5)
    m.history[0] = x[0]
    return y


def parameter_written(m, x):
    with torch.no_grad():
        m.linear.weight.mul_(0.5)
    return m.linear(x)


IN_PLACE = {
    "x += 1": (added, (x(),)),
    "x.mul_": (multiplied, (x(),)),
    "a view": (of_a_view, (x(), torch.rand(3, 2))),
    "x -= mean": (normalised, (x(),)),
    "read before": (read_before, (x(),)),
    "two": (renamed, (x(), x())),
    "a residual": (residual, (x(),)),
    "half": (added, (x().half(),)),
    "taken out of a dict": (popped, ({"x": x()},)),
    "in a list": (in_a_list, ([x(), x()],)),
    "masked_fill_": (lambda m, x, mask: x.masked_fill_(mask, -1e9).softmax(-1), (x(), x() > 0.5)),
    "index_add_": (lambda m, x, i: x.index_add_(0, i, x[:2] + 1), (x(), torch.tensor([0, 2]))),
    "a row": (lambda m, x: x[0].zero_() + x, (x(),)),
    "a counter": (counted, (x(),)),
    "a history": (remembered, (x(),)),
    "a parameter": (parameter_written, (x(),)),
}  # fmt: skip


def snapshot(module, example):
    """All that a call could change, in copies."""
    tensors = module.state_dict(keep_vars=False)
    generators = [torch.random.get_rng_state(), mx.random.state[0].tolist(), np.random.get_state()[1].tolist()]
    rest = [module.training, module.calls, module.seen, random.getstate()[1], generators]
    return pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, [tensors, example, rest]
    )


def same(a, b):
    left, right = pytree.tree_flatten(a), pytree.tree_flatten(b)
    return left[1] == right[1] and all(
        bool((torch.as_tensor(i) == torch.as_tensor(j)).all()) for i, j in zip(left[0], right[0], strict=True)
    )


@pytest.mark.parametrize("name", IN_PLACE)
def test_nothing_of_the_callers_changes(name):
    """And the port is as fresh as the module: its first calls give what the module's do, inputs included."""
    function, example = IN_PLACE[name]
    module = Forward(function).to(torch.float16 if name == "half" else torch.float32)
    before = snapshot(module, example)
    port = mlxport.port(module, example)
    assert same(before, snapshot(module, example))
    original = copied_without_lock(module)
    if name == "half":
        original = original.half()
    given, taken = copy.deepcopy(example), to_mlx(example)
    for _ in range(2):
        leaves, ours = pytree.tree_leaves(given), pytree.tree_leaves(taken)
        with torch.no_grad():
            wanted = original(*copied_containers(given, leaves))
        got = port(*copied_containers(taken, ours))
        for a, b in zip(pytree.tree_leaves(got) + ours, pytree.tree_leaves(wanted) + leaves, strict=True):
            assert np.allclose(np.array(a), b.numpy(), atol=1e-3 if name == "half" else 1e-5)


def copied_without_lock(module):
    made = Forward(module.function)
    made.load_state_dict(module.state_dict())
    return made


def copied_containers(value, leaves):
    """``value`` in containers of its own, with ``leaves`` in them."""
    return pytree.tree_unflatten(leaves, pytree.tree_flatten(value)[1])


def test_a_folder_too(tmp_path):
    module, example = Forward(counted).train(), (x(),)
    before = snapshot(module, example)
    report = mlxport.port_folder(lambda: (module, example), tmp_path / "out")
    assert same(before, snapshot(module, example)) and report.parity.passed
    assert any("training mode" in note for note in report.notes)
    assert np.allclose(mlxport.load(tmp_path / "out")(*to_mlx(example)), example[0].numpy(), atol=1e-6)


def test_another_dtype_too(tmp_path):
    module, example = Forward(normalised), (x(),)
    before = snapshot(module, example)
    mlxport.port_folder(lambda: (module, example), tmp_path / "out", dtype="bfloat16")
    assert same(before, snapshot(module, example))


class Seeded(nn.Module):
    def forward(self, x):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        return x + 1


def test_generators_that_the_forward_sets():
    module, example = Seeded(), (x(),)
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    random.seed(7)
    first = random.random()
    random.seed(7)
    mlxport.port(module, example)
    assert torch.equal(torch.rand(3), wanted) and random.random() == first


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x * math.nan,
        lambda m, x: (x - 2).log(),
        lambda m, x: (m.linear(x), (x - x) / (x - x)),
        lambda m, x: {"logits": m.linear(x) / 0 * 0},
    ],
    ids=["NaN", "a logarithm", "one of two", "0 / 0"],
)
def test_nothing_but_nan_is_not_verified(function, tmp_path):
    module = Forward(function)
    with pytest.raises(VerificationError, match="not verified\n.*nothing but NaN, so nothing was compared") as caught:
        mlxport.port(module, (x(),))
    assert "give an example for which the original computes numbers" in caught.value.hint
    with pytest.raises(VerificationError, match="nothing was compared"):
        mlxport.port_folder(lambda: (module, (x(),)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert mlxport.port(module, (x(),), verify=False)(mx.zeros((3, 4))) is not None


def test_invented_inputs_that_give_nothing_but_nan_are_not_used():
    """The second set of inputs is noise, which this module has no answer for; the example is what is verified."""
    module = Forward(lambda m, x: torch.sqrt(x - 100))
    assert mlxport.port(module, (x() + 101,))(mx.full((2, 4), 104.0)).tolist() == [[2.0] * 4] * 2


def test_nothing_returned_is_not_verified():
    with pytest.raises(VerificationError, match="returns no tensor, so nothing was compared"):
        mlxport.port(Forward(lambda m, x: x.shape[0]), (x(),))
