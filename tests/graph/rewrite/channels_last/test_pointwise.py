"""``conv → op → conv`` takes a transpose before and one after, whatever pointwise op is between: all of the table."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from comparing import compared
from torch import nn
from torch.nn import functional

import mlxport
from mlxport.graph.lower import lowering as _lowering  # noqa: F401  (fills the table)
from mlxport.graph.lower.registry import LOWERINGS, overload

Op = Callable[[torch.Tensor], torch.Tensor]

POINTWISE = [
    key
    for key in sorted(LOWERINGS)
    if key.startswith(("aten.", "prims.")) and torch.Tag.pointwise in overload(key).tags
]
# Tagged, but neither of floats nor of truth values in torch; or no function of each place.
NOT_TRIED = {
    "aten.__lshift__.Scalar": "integers", "aten.__lshift__.Tensor": "integers", "aten.__rshift__.Scalar": "integers",
    "aten.__rshift__.Tensor": "integers", "aten.bitwise_left_shift.Scalar_Tensor": "integers",
    "aten.bitwise_left_shift.Tensor": "integers", "aten.bitwise_left_shift.Tensor_Scalar": "integers",
    "aten.bitwise_right_shift.Scalar_Tensor": "integers", "aten.bitwise_right_shift.Tensor": "integers",
    "aten.bitwise_right_shift.Tensor_Scalar": "integers", "aten.gcd.default": "integers",
    "aten.lcm.default": "integers", "aten.equal.default": "one truth value for all", "aten.rrelu.default": "random",
}  # fmt: skip
# Arguments that are not a number or another tensor of floats in (0.1, 0.9): y is what the op is given.
ARGUMENTS: dict[str, Callable[[torch.Tensor], tuple]] = {
    "acosh": lambda y: (y + 1.5,),
    "atanh": lambda y: (y * 0.9,),
    "clamp.Tensor": lambda y: (y, y * 0.5, y.flip(0)),
    "clip.Tensor": lambda y: (y, y * 0.5, y.flip(0)),
    "clamp.default": lambda y: (y, 0.3, 0.6),
    "clip.default": lambda y: (y, 0.3, 0.6),
    "convert_element_type": lambda y: (y, torch.float16),
    "masked_fill.Scalar": lambda y: (y, y > 0.5, 0.25),
    "polygamma": lambda y: (1, y + 0.5),
    "where.self": lambda y: (y > 0.5, y, y.square()),
    "special_zeta.default": lambda y: (y + 1.5, y + 0.5),
    "special_zeta.other_scalar": lambda y: (y + 1.5, 0.5),
    "special_zeta.self_scalar": lambda y: (2.5, y + 0.5),
    "pow.Scalar": lambda y: (2.0, y),
    "threshold": lambda y: (y, 0.5, 0.25),
}
KEYWORDS = {
    "aten.div.Scalar_mode": {"rounding_mode": "floor"},
    "aten.div.Tensor_mode": {"rounding_mode": "trunc"},
    "aten.round.decimals": {"decimals": 1},
}
# A result that is not continuous, or of which another rounding makes another number: what is done with it.
AFTER: dict[str, Op] = {"frexp": lambda made: torch.ldexp(*made), "nextafter": lambda made: made * 0.5}


def given(key: str, y: torch.Tensor) -> tuple:
    """Arguments of an op: ``y`` for the first tensor, something made of it for others, 0.5 and 2 for numbers."""
    target = overload(key)
    name, _, overloaded = key.partition(".")[2].rpartition(".")
    for known in (f"{name}.{overloaded}", name):
        if known in ARGUMENTS:
            return ARGUMENTS[known](y)
    args, tensors = [], 0
    for argument in target._schema.arguments:
        kind = str(argument.type)
        if argument.has_default_value() and kind != "Tensor" or argument.kwarg_only:
            continue
        tensors += kind == "Tensor"
        if kind == "Tensor":
            args.append(y if tensors == 1 else y * (0.5 / tensors) + 0.1)
        else:
            args.append(2 if kind == "int" else 0.5)
    return tuple(args)


def called(key: str, y: torch.Tensor) -> torch.Tensor:
    """What the op gives, as floats."""
    name = key.partition(".")[2].rpartition(".")[0]
    made = overload(key)(*given(key, y), **KEYWORDS.get(key, {}))
    made = AFTER[name](made) if name in AFTER else made
    return made.to(y.dtype) if isinstance(made, torch.Tensor) else made


def form(key: str) -> Op | None:
    """The op on floats, or on truth values; None where torch has neither."""

    def of_floats(y: torch.Tensor) -> torch.Tensor:
        return called(key, y)

    def of_truth(y: torch.Tensor) -> torch.Tensor:
        args = [item > 0.3 if isinstance(item, torch.Tensor) else True for item in given(key, y)]
        return overload(key)(*args).to(y.dtype)

    for function in (of_floats, of_truth):
        try:
            if isinstance(function(torch.rand(2, 3)), torch.Tensor):
                return function
        except (RuntimeError, TypeError, NotImplementedError):
            continue
    return None


class Between(nn.Module):
    """An op between two convolutions, on numbers in (0.1, 0.9)."""

    def __init__(self, op: Op, rank: int = 2) -> None:
        super().__init__()
        make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        self.first, self.second, self.op = make(3, 4, 3, padding=1), make(4, 5, 3, padding=1), op

    def forward(self, x: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        return self.second(self.op(self.first(x).sigmoid() * 0.8 + 0.1, *more))


class Several(nn.Module):
    """Many at once: an export takes longer than an op."""

    def __init__(self, ops: list[Op]) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Between(op) for op in ops])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part(x) for part in self.parts)


def transposes(source: str) -> int:
    return len(re.findall(r"\.transpose\(|moveaxis\(|swapaxes\(", source))


def ported(module: nn.Module, *inputs: torch.Tensor) -> str:
    """The source of the port, which computes the same."""
    port = mlxport.port(module.eval(), inputs, verify=False)
    compared(module, port, inputs, limit=2e-4)
    return str(port.source)


def test_the_ops_that_are_not_tried():
    assert {key for key in POINTWISE if key not in NOT_TRIED and form(key) is None} == set()
    assert set(NOT_TRIED) <= set(POINTWISE) and len(POINTWISE) - len(NOT_TRIED) > 190


TRIED = [key for key in POINTWISE if key not in NOT_TRIED]
BATCHES = [TRIED[start : start + 16] for start in range(0, len(TRIED), 16)]


@pytest.mark.parametrize("keys", BATCHES, ids=lambda keys: f"{keys[0]}-{keys[-1]}")
def test_two_transposes_around_a_pair(keys):
    torch.manual_seed(0)
    ops = [form(key) for key in keys]
    source = ported(Several(ops), torch.randn(2, 3, 4, 5))
    assert transposes(source) <= 2 * len(keys)
    parts = source.partition("\nclass Several(")[0].split("\nclass ")  # the last transpose may be the caller's
    assert max(map(transposes, parts)) <= 2, source


SPATIAL = torch.arange(20.0).reshape(4, 5) / 30
# Operands that broadcast, constants, casts, ops without a tag, in place, several results.
SPELLINGS: dict[str, Op] = {
    "a number for each channel": lambda y: torch.hypot(y, torch.arange(4.0)[:, None, None]),
    "a number for each column": lambda y: torch.fmax(y, torch.arange(5.0) / 10),
    "a number for each place": lambda y: torch.lerp(y, SPATIAL, 0.3),
    "numbers and tensors": lambda y: torch.addcmul(y, SPATIAL, torch.ones(4, 1, 1), value=0.5),
    "a mask for channels": lambda y: y.masked_fill(torch.tensor([True, False, True, False])[:, None, None], 0.1),
    "a mask of columns": lambda y: torch.where(torch.arange(5) > 2, y, 0.25),
    "a tensor of no axes": lambda y: y.masked_fill(y > 0.5, torch.tensor(0.1)).clamp(torch.tensor(0.2)),
    "in place": lambda y: y.clone().clamp_(0.2, 0.7).mul_(2).masked_fill_(y > 0.8, 0.0),
    "cast and back": lambda y: (y.half() + 1).float(),
    "type_as": lambda y: y.double().type_as(y),
    "like": lambda y: y + torch.full_like(y, 0.5) * torch.ones_like(y),
    "hardswish": functional.hardswish,
    "logsigmoid": functional.logsigmoid,
    "prelu": lambda y: functional.prelu(y - 0.5, torch.arange(4.0) / 4),
    "two of them": lambda y: torch.atan2(y.sin(), y.cos()),
    "over channels": lambda y: y - y.max(1, keepdim=True).values * y.logsumexp(1, keepdim=True),
    "over all": lambda y: y / y.amax() + y.mean(),
    "a softmax": lambda y: y.softmax(1).cumsum(2),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_operands_of_all_kinds(name):
    torch.manual_seed(0)
    source = ported(Between(SPELLINGS[name]), torch.randn(2, 3, 4, 5))
    assert transposes(source) <= 2, source


@pytest.mark.parametrize(("rank", "shape"), [(1, (2, 3, 9)), (3, (2, 3, 4, 5, 3))], ids=["one axis", "three axes"])
@pytest.mark.parametrize("name", ["addcmul", "masked_fill", "copysign"])
def test_other_convolutions(rank, shape, name):
    ops = {
        "addcmul": lambda y: torch.addcmul(y, y, y.sin()),
        "masked_fill": lambda y: y.masked_fill(y > 0.5, 0.1),
        "copysign": lambda y: torch.copysign(y, torch.tensor([1.0, -1, 1, -1]).reshape(4, *[1] * rank)),
    }
    torch.manual_seed(0)
    source = ported(Between(ops[name], rank), torch.randn(shape))
    assert transposes(source) <= 2, source


def test_an_input_costs_its_own():
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 4, 5), torch.rand(2, 4, 4, 5)
    assert transposes(ported(Between(torch.hypot), *inputs)) == 3


def test_an_input_is_left_where_nothing_is_saved():
    """Without a second convolution, one transpose after the first is all."""

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return torch.hypot(self.conv(x), other)

    assert transposes(ported(Ends(), torch.randn(2, 3, 4, 5), torch.rand(2, 4, 4, 5))) == 2


def test_an_operator_that_a_user_tags():
    @torch.library.custom_op("sinking_test::halved", mutates_args=(), tags=(torch.Tag.pointwise,))
    def halved(x: torch.Tensor) -> torch.Tensor:
        return x * 0.5

    halved.register_fake(torch.empty_like)

    @mlxport.register_op("sinking_test::halved")
    def mlx_halved(x):
        return x * 0.5

    assert transposes(ported(Between(halved), torch.randn(2, 3, 4, 5))) == 2
