"""torch's operators of control flow: functions of the port, called by a value, in a loop or for each row."""

from __future__ import annotations

import mlx.core as mx
import pytest
import torch
from comparing import LinearPair, compared, randomised
from torch import nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.map import map as map_rows
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import mlxport
from mlxport.errors import MlxportError, UsageError


class ByValue(LinearPair):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.first(x), lambda x: self.second(x).relu(), (x,))


class Cheap(nn.Module):
    def forward(self, x):
        high, low = torch.cond(x.sum() > 0, lambda x: (x + 1, x * 2), lambda x: (x - 1, x * 3), (x,))
        return high * low


class BySize(nn.Module):
    def forward(self, x):
        return torch.cond(x.shape[0] > 4, lambda x: x + 1, lambda x: x - 1, (x,))


class Nested(nn.Module):
    def forward(self, x):
        def positive(x):
            return torch.cond(x.max() > 1, lambda x: x.softmax(-1), lambda x: x @ x, (x,))

        return torch.cond(x.sum() > 0, positive, lambda x: x.cumsum(0) * 2, (x,))


class While(LinearPair):
    def forward(self, x):
        def goes_on(count, x):
            return (count < 5) & (x.abs().sum() < 40)

        return while_loop(goes_on, lambda count, x: (count + 1, x + self.first(x).tanh()), (torch.tensor(0), x))


class Scan(LinearPair):
    def forward(self, x):
        def step(state, row):
            state = torch.tanh(self.first(state) + row)
            return state, state * 2

        return scan(step, torch.zeros(x.shape[1], 4), x)


class Backwards(nn.Module):
    def forward(self, x):
        def step(state, row):
            return {"sum": state["sum"] + row[0], "last": row[1].clone()}, (state["sum"] * row[1]).clone()

        init = {"sum": torch.zeros(4), "last": torch.ones(4)}
        return scan(step, init, (x, x * 2), dim=1, reverse=True)


class Rows(LinearPair):
    def forward(self, rows, y):
        return map_rows(lambda row, y: self.first(row) + y, rows, y)


class Recurrence(nn.Module):
    def forward(self, a, x):
        def combine(p, q):
            return p[0] * q[0], q[0] * p[1] + q[1]

        return associative_scan(combine, (a, x), 1, combine_mode="generic")[1]


class Products(nn.Module):
    """Of matrices, which do not commute, from the end; with a weight, and a tree of two."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        def combine(p, q):
            return {
                "product": p["product"] @ q["product"],
                "largest": [torch.maximum(p["largest"][0], q["largest"][0])],
            }

        given = {"product": x @ self.weight, "largest": [x[..., 0]]}
        made = associative_scan(combine, given, 1, reverse=True, combine_mode="generic")
        return made["product"], made["largest"][0]


class Weighed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x):
        def combine(p, q):
            return torch.where(self.weight > 0, p + q, torch.minimum(p, q))

        return associative_scan(combine, x, 0, combine_mode="generic")


@pytest.mark.parametrize(
    ("module", "example", "others"),
    [
        (ByValue(), (torch.ones(3, 4),), (-torch.ones(2, 4),)),
        (Cheap(), (torch.ones(3, 4),), (-torch.ones(2, 4),)),
        (BySize(), (torch.randn(3, 4),), (torch.randn(6, 2),)),
        (Nested(), (torch.full((3, 3), 2.0),), (torch.full((2, 2), 0.5),)),
        (Nested(), (torch.full((3, 3), 2.0),), (torch.full((2, 2), -0.5),)),
        (While(), (torch.randn(3, 4),), (torch.randn(2, 4) * 9,)),
        (Scan(), (torch.randn(6, 3, 4),), (torch.randn(9, 2, 4),)),
        (Backwards(), (torch.randn(4, 6),), (torch.randn(4, 3),)),
        (Rows(), (torch.randn(6, 3, 4), torch.randn(4)), (torch.randn(2, 5, 4), torch.randn(4))),
        (Recurrence(), (torch.rand(2, 6, 4), torch.randn(2, 6, 4)), (torch.rand(3, 9, 4), torch.randn(3, 9, 4))),
        (Products(), (torch.randn(2, 5, 3, 3),), (torch.randn(1, 8, 3, 3),)),
        (Weighed(), (torch.randn(5, 4),), (torch.randn(1, 4),)),
    ],
    ids=lambda item: type(item).__name__ if isinstance(item, nn.Module) else "",
)
def test_control_flow(module, example, others):
    module = randomised(module)
    ported = mlxport.port(module, example)
    compared(module, ported, example)
    compared(module, ported, others)


def test_cheap_branches_are_both_computed():
    source = mlxport.port(Cheap().eval(), (torch.ones(3, 4),)).source
    assert source.count("mx.where(") == 2 and "call_one" not in source


def test_functions_are_readable():
    source = mlxport.port(randomised(Scan()), (torch.randn(6, 3, 4),)).source
    assert "def step(state, x_row, " in source and "call_along(step, (" in source


def test_an_associative_scan_is_short_and_of_any_length():
    ported = mlxport.port(Recurrence().eval(), (torch.rand(2, 6, 4), torch.randn(2, 6, 4)))
    assert "call_pairs(combine, (" in ported.source and ported.source.count("mx.concatenate") == 1
    with pytest.raises(ValueError, match="x"):  # of the length of the other
        ported(mx.ones((2, 7, 4)), mx.ones((2, 6, 4)))


def test_a_scan_that_torch_has_on_graphics_cards_only():
    class Pointwise(nn.Module):
        def forward(self, x):
            return associative_scan(lambda p, q: p + q, x, 1)

    with pytest.raises(UsageError, match="combine_mode='pointwise'") as raised:
        mlxport.port(Pointwise().eval(), (torch.randn(2, 6),))
    assert 'combine_mode="generic"' in raised.value.hint


def test_what_cannot_be_handed_on_is_named():
    class Counting(nn.Module):
        def forward(self, x):
            return while_loop(lambda count, x: count < 3, lambda count, x: (count + 1, x * 2), (0, x))[1]

    with pytest.raises(MlxportError, match="while_loop"):
        mlxport.port(Counting().eval(), (torch.randn(3, 4),))


def slopes(score, b, h, q, k):
    return score - (q - k).abs() * 2.0 ** -(h + 1)


class Flex(nn.Module):
    def __init__(self, score_mod=None, mask_mod=None, returns_sums=False, heads=4):
        super().__init__()
        self.score_mod, self.mask_mod, self.returns_sums, self.heads = score_mod, mask_mod, returns_sums, heads
        self.bias = nn.Parameter(torch.randn(4, 8, 8))

    def forward(self, q, k, v):
        block_mask = None
        if self.mask_mod is not None:
            block_mask = create_block_mask(self.mask_mod, None, None, q.shape[2], k.shape[2], device="cpu")
        score_mod = self.score_mod
        if score_mod == "bias":
            score_mod = lambda score, b, h, q, k: score + self.bias[h, q, k]  # noqa: E731
        grouped = q.shape[1] != k.shape[1]
        return flex_attention(
            q, k, v, score_mod, block_mask=block_mask, enable_gqa=grouped, return_lse=self.returns_sums
        )


def causal(b, h, q, k):
    return q >= k


def window(b, h, q, k):
    return (q - k < 3) & (q > k)  # the first row sees nothing


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("options", "heads", "fused"),
    [
        ({}, 4, True),
        ({}, 2, True),
        ({"score_mod": slopes}, 4, True),
        ({"score_mod": "bias"}, 4, True),
        ({"mask_mod": causal}, 4, True),
        ({"mask_mod": window}, 4, False),
        ({"score_mod": slopes, "mask_mod": causal}, 2, False),
        ({"returns_sums": True}, 4, True),
    ],
)
def test_flex_attention(options, heads, fused):
    module = randomised(Flex(**options))
    inputs = (torch.randn(2, 4, 8, 16), torch.randn(2, heads, 8, 16), torch.randn(2, heads, 8, 16))
    ported = mlxport.port(module, inputs)
    compared(module, ported, inputs)
    assert not fused or "scaled_dot_product_attention" in ported.source


def test_a_block_mask_is_made_in_the_module():
    class Given(nn.Module):
        def forward(self, q, block_mask):
            return flex_attention(q, q, q, block_mask=block_mask)

    mask = create_block_mask(causal, None, None, 8, 8, device="cpu")
    with pytest.raises(UsageError, match="BlockMask"):
        mlxport.port(Given().eval(), (torch.randn(2, 4, 8, 16), mask))
