"""Every size of the inputs is said to be free, in its range, or fixed, with the reason; 1 in the example stays free."""

from __future__ import annotations

import mlx.core as mx
import pytest
import torch
from comparing import compared, randomised
from torch import nn

import mlxport
from mlxport.errors import UsageError


class Loop(nn.Module):
    def forward(self, x):
        state, states = torch.zeros(x.shape[0], 4), []
        for step in range(x.shape[1]):
            state = torch.tanh(state + x[:, step])
            states.append(state)
        return torch.stack(states, 1)


class Int(nn.Module):
    def forward(self, x):
        return x * int(x.shape[1])


class Squeezed(nn.Module):
    def forward(self, x):
        return x.squeeze() * 2


class Coloured(nn.Module):
    """Repeats one channel three times."""

    def forward(self, x):
        return (x.repeat(1, 3, 1, 1) if x.shape[1] == 1 else x) * 2


class Scaled(nn.Module):
    def forward(self, x, scale):
        return x * scale[:, None]


class Nested(nn.Module):
    def forward(self, batch):
        return batch["x"].unflatten(1, (-1, 8)).sum(1) + batch["rest"][0]


CONVOLUTIONS = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
ONE = "the example has 1 there"


@pytest.mark.parametrize(
    ("module", "example", "others", "told"),
    [
        (nn.Conv1d(4, 4, 3), [(1, 4, 20)], [(3, 4, 9)], ["(B, 4, L); B is free; 4 is fixed (Conv1d); L is free, from"]),
        (nn.LSTM(4, 6), [(5, 1, 4)], [(3, 2, 4)], ["(B, L, 4); B and L are free; 4 is fixed (LSTM)"]),
        (Loop(), [(1, 6, 4)], [(3, 9, 4)], ["(B, L, 4); B and L are free; 4 is fixed"]),
        (Int(), [(1, 6)], [(3, 6)], ["(B, 6); B is free; 6 is fixed (int() of it, `int(x.shape[1])`, test_told"]),
        (Squeezed(), [(1, 4)], [(1, 3)], [f"(1, L); 1 is fixed ({ONE}, where the module gives something else"]),
        (Squeezed(), [(2, 4)], [(3, 5)], ["(B, L); B and L are free, from 2"]),
        (Coloured(), [(1, 1, 4, 5)], [(1, 1, 2, 3)], [f"1 is fixed ({ONE}, where the module gives something else"]),
        (Coloured(), [(2, 3, 4, 5)], [(1, 4, 1, 3)], ["(B, L, H, W); B, H and W are free; L is free, from 2"]),
        (Scaled(), [(4, 6), (1,)], [(2, 3), (1,)], ["B and L are free", f"1 is fixed ({ONE}, and with 2 the module"]),
        (Scaled(), [(1, 6), (1,)], [(3, 2), (3,)], ["(B, L); B and L are free", "scale: (B); B is free"]),
    ],
)  # fmt: skip
def test_free_or_fixed_and_why(module, example, others, told):
    module = randomised(module)
    inputs = tuple(torch.randn(shape) for shape in example)
    ported = mlxport.port(module, inputs)
    assert len(ported.sizes) == len(told)
    for said, wanted in zip(ported.sizes, told, strict=True):
        assert wanted in said
    compared(module, ported, inputs)
    compared(module, ported, tuple(torch.randn(shape) for shape in others))


def test_nested_inputs_are_named():
    inputs = {"x": torch.randn(1, 32, 3), "rest": [torch.randn(1, 1, 1)]}
    ported = mlxport.port(Nested().eval(), (inputs,))
    assert ported.sizes[0].startswith("sizes of x: (B, L, L2); B and L2 are free")
    assert "a multiple of 8" in ported.sizes[0]


def test_only_what_was_tried_is_claimed():
    ported = mlxport.port(Squeezed().eval(), (torch.randn(2, 4),))
    with pytest.raises(ValueError, match="B is 1 and must be at least 2"):
        ported(mx.ones((1, 4)))


def test_running_once_leaves_the_module_as_it_was():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.seen = []

        def forward(self, x):
            self.seen.append(1)
            self.calls += 1
            return x + self.calls

    module = Counting().eval()
    ported = mlxport.port(module, (torch.ones(1, 3),))
    assert not module.seen and module.calls == 0
    assert ported(mx.zeros((2, 3))).tolist() == [[1.0] * 3] * 2


def test_said_by_hand():
    module = randomised(CONVOLUTIONS)
    inputs = (torch.randn(1, 3, 64, 64),)
    ported = mlxport.port(module, inputs, dynamic_shapes="input: Batch, 3, H*32, W*32")
    assert "('H', 32, 0)" in ported.source.replace('"', "'") and "'Batch'" in ported.source.replace('"', "'")
    compared(module, ported, (torch.randn(3, 3, 32, 96),))
    with pytest.raises(ValueError, match=r"32 \* H"):
        ported(mx.zeros((1, 3, 40, 64)))


def test_sizes_that_are_not_named_are_as_the_module_allows():
    ported = mlxport.port(Scaled().eval(), (torch.randn(4, 6), torch.randn(4)), dynamic_shapes="scale: Many")
    assert ported.sizes[0] == "sizes of x: (Many, L); Many and L are free"


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        ("input 2, 3", "is not of the form NAME: SIZE, SIZE", 'write it like "x: B, 3, H'),
        ("", "no input is named", 'write it like "x: B, 3, H'),
        ("input: B, 3, H/2, W", "'H/2' of input is no size", 'write it like "x: B, 3, H'),
        ("input: B, 3, H*0, W", "is always 0", "write the number"),
        ("x: B, 3, H, W", "there is no input x", "the example has input"),
        ("input: B, 3, H", "input is given 3 sizes, the example's has 4: [2, ", "name each: input: _, _, _, _"),
        ("input: B, 4, H, W", "size 1 of input is 4, the example has 3", "write 3, or a name if it may change"),
        ("input: B, 3, H*48, W", "size 2 of input is H*48, the example has 64", "give an example of such a size, as 9"),
        ("input: B, C, H, W", "size 1 of input cannot be C; it is fixed to 3 (Conv2d 0)", "write 3 there"),
    ],
)  # fmt: skip
def test_what_cannot_be_said(said, message, hint):
    with pytest.raises(UsageError) as caught:
        mlxport.port(CONVOLUTIONS.eval(), (torch.randn(2, 3, 64, 64),), dynamic_shapes=said)
    assert message in str(caught.value) and hint in caught.value.hint


def test_both_ways_of_saying_it():
    with pytest.raises(UsageError, match="both say which sizes are free"):
        mlxport.port(CONVOLUTIONS.eval(), (torch.randn(2, 3, 8, 8),), dynamic=False, dynamic_shapes="input: B, 3, 8, 8")


@pytest.mark.parametrize(
    ("module", "example", "message"),
    [
        (nn.Linear(4, 4), torch.randn(2, 5), "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 4x4)"),
        (nn.Embedding(4, 4), torch.full((2, 5), 9), "IndexError: index out of range in self"),
        (nn.Embedding(4, 4), torch.randn(2, 5), "RuntimeError: Expected tensor for argument #1 'indices'"),
    ],
)
def test_a_wrong_example_gets_torchs_own_message(module, example, message):
    with pytest.raises(UsageError) as caught:
        mlxport.port(module.eval(), (example,))
    assert f"does not take the example inputs; in torch it raises {message}" in str(caught.value)
