"""What stands around a part of a forward and changes nothing of what it computes, or its dtype only."""

from __future__ import annotations

import pytest
import torch
from comparing import LinearPair, compared, randomised
from torch import nn
from torch._higher_order_ops.out_dtype import out_dtype
from torch._higher_order_ops.strict_mode import strict_mode
from torch.utils.checkpoint import checkpoint

import mlxport
from mlxport.errors import MlxportError


class Switched(LinearPair):
    """To the end of the forward: what torch.export itself does not follow."""

    def forward(self, x):
        with torch.no_grad():
            y = self.first(x)
            with torch.set_grad_enabled(True):
                y = y * 2
        torch.set_grad_enabled(False)
        with torch.enable_grad():
            return self.second(y).relu()


class Decorated(LinearPair):
    @torch.enable_grad()
    def forward(self, x):
        return self.second(self.first(x).detach())


class Inference(LinearPair):
    def forward(self, x):
        with torch.inference_mode():
            y = self.first(x)
        return self.second(y)


class Full(LinearPair):
    def forward(self, x):
        with torch.autocast(device_type=x.device.type, enabled=False):
            y = self.first(x.float())
        with torch.autocast("cuda", enabled=False):
            return self.second(y).cos(), y.sin()


class Half(LinearPair):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.first(x)


class Checkpointed(LinearPair):
    def forward(self, x):
        y = checkpoint(self.first, x, use_reentrant=True)
        return checkpoint(lambda a, b: self.second(a) * b, y, x, use_reentrant=False)


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x)
        return (x * scale).round(), x + scale

    @staticmethod
    def backward(ctx, gradient, other):
        return gradient, None


class Straight(LinearPair):
    def forward(self, x):
        return Rounded.apply(self.first(x), 3.0)


class Strict(LinearPair):
    def forward(self, x):
        return strict_mode(lambda x, y: (self.first(x), self.second(y) * 2), (x, x + 1))


class Mapped(LinearPair):
    def forward(self, x):
        return torch.vmap(lambda row: torch.outer(self.first(row).softmax(-1), row))(x)


@torch.jit.script
def scripted(x, count: int):
    return x * count if count > 2 else x


class Scripted(LinearPair):
    def forward(self, x):
        return scripted(self.first(x), 3)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    "kind",
    [Switched, Decorated, Inference, Full, Half, Checkpointed, Straight, Strict, Mapped, Scripted],
)
def test_contexts(kind):
    module = randomised(kind())
    ported = mlxport.port(module, (torch.randn(3, 4),))
    compared(module, ported, (torch.randn(5, 4),), limit=2e-2 if kind is Half else 1e-4)


def test_products_of_integers_in_more_bits():
    class Product(nn.Module):
        def forward(self, x, y):
            return out_dtype(torch.ops.aten.mm.default, torch.int32, x, y)

    example = torch.randint(-99, 99, (3, 4), dtype=torch.int8), torch.randint(-99, 99, (4, 2), dtype=torch.int8)
    compared(Product().eval(), mlxport.port(Product().eval(), example), example)


def test_gradients_that_a_forward_asks_for_are_refused():
    class Forces(LinearPair):
        def forward(self, x):
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                return torch.autograd.grad(self.first(x).square().sum(), x)[0]

    with pytest.raises(MlxportError) as raised:
        mlxport.port(Forces().eval(), (torch.randn(3, 4),))
    assert "gradients that a forward asks for itself" in raised.value.hint
