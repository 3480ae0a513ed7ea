"""Rotary embeddings in many spellings become mx.fast.rope, and near-misses do not."""

from __future__ import annotations

import pytest
import torch
from fusing import Function, fused, of, together

CALL = "mx.fast.rope("
X, X2 = (2, 4, 6, 16), (3, 4, 11, 16)
Y, Y2 = (2, 6, 4, 16), (3, 11, 4, 16)  # heads behind the length


def angles(length, dims=16, base=10000.0, start=0):
    inverse = 1.0 / (base ** (torch.arange(0, dims, 2).float() / dims))
    return torch.outer(torch.arange(start, start + length).float(), inverse)


def rotate_half(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rotate_pairs(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def halves(x):
    emb = torch.cat([angles(x.shape[2])] * 2, dim=-1)
    return x * emb.cos() + rotate_half(x) * emb.sin()


def halves_in_float(x):
    emb = torch.cat([angles(x.shape[2], base=500000.0)] * 2, dim=-1)[None, None]
    wide = x.float()
    return ((wide * emb.cos()) + (rotate_half(wide) * emb.sin())).to(x.dtype)


def chunks(x):
    a = angles(x.shape[2])
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * a.cos() - second * a.sin(), second * a.cos() + first * a.sin()], dim=-1)


def partial(x):
    emb = torch.cat([angles(x.shape[2], 8)] * 2, dim=-1)
    turned, rest = x[..., :8], x[..., 8:]
    return torch.cat((turned * emb.cos() + rotate_half(turned) * emb.sin(), rest), dim=-1)


def interleaved(x):
    emb = torch.repeat_interleave(angles(x.shape[2]), 2, dim=-1)
    return x * emb.cos() + rotate_pairs(x) * emb.sin()


def stacked(x):
    a = angles(x.shape[2], base=1000.0)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * a.cos() - odd * a.sin(), even * a.sin() + odd * a.cos()], dim=-1).flatten(-2)


def complexes(x):
    a = angles(x.shape[2])
    turns = torch.polar(torch.ones_like(a), a)
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(3).type_as(x)


def parted(x):
    a = angles(x.shape[2])
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.cat([even * a.cos() - odd * a.sin(), even * a.sin() + odd * a.cos()], dim=-1)


def shifted(x):
    emb = torch.cat([angles(x.shape[2], start=3)] * 2, dim=-1)
    return x * emb.cos() + rotate_half(x) * emb.sin()


def slower(x):
    emb = torch.cat([angles(x.shape[2]) * 0.25] * 2, dim=-1)
    return x * emb.cos() + rotate_half(x) * emb.sin()


def longer(x):
    emb = torch.cat([angles(x.shape[2])] * 2, dim=-1)
    return x * (emb.cos() * 1.5) + rotate_half(x) * (emb.sin() * 1.5)


def uneven(x):
    inverse = torch.tensor([1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.01, 0.004])
    emb = torch.cat([torch.outer(torch.arange(x.shape[2]).float(), inverse)] * 2, dim=-1)
    return x * emb.cos() + rotate_half(x) * emb.sin()


def einsum_angles(x):
    t = torch.arange(x.shape[2], dtype=torch.float32)
    a = torch.einsum("i,j->ij", t, 10000.0 ** (-torch.arange(0, 16, 2) / 16))
    emb = torch.cat((a, a), dim=-1)[None, None, :, :]
    return emb.cos() * x + emb.sin() * rotate_half(x)


SPELLINGS = {
    halves: "16, traditional=False, base=10000.0, scale=1.0, offset=0)",
    halves_in_float: "16, traditional=False, base=500000.0, scale=1.0, offset=0)",
    chunks: "16, traditional=False, base=10000.0, scale=1.0, offset=0)",
    partial: "8, traditional=False, base=10000.0, scale=1.0, offset=0)",
    interleaved: "16, traditional=True, base=10000.0, scale=1.0, offset=0)",
    stacked: "16, traditional=True, base=1000.0, scale=1.0, offset=0)",
    complexes: "16, traditional=True, base=10000.0, scale=1.0, offset=0)",
    parted: "mx.concatenate([args_0[..., ::2], args_0[..., 1::2]], axis=3)",
    shifted: "16, traditional=False, base=10000.0, scale=1.0, offset=3)",
    slower: "16, traditional=False, base=10000.0, scale=0.25, offset=0)",
    longer: "scale=1.0, offset=0) * 1.5",
    uneven: "base=None, scale=1.0, offset=0, freqs=self.rope_freqs)",
    einsum_angles: "16, traditional=False, base=10000.0, scale=1.0, offset=0)",
}


@pytest.mark.parametrize("part", [0, 1])
def test_spellings(part):
    functions = list(SPELLINGS)[part::2]
    result = together(functions, X, second=(X2,))
    source = " ".join(result.source.split())
    assert source.count(CALL) == len(functions) == result.applied.count("rope") and not result.declined
    assert "mx.cos" not in source and "mx.sin" not in source
    for function in functions:
        assert SPELLINGS[function] in source, function


def behind(x):
    emb = torch.cat([angles(x.shape[1])] * 2, dim=-1)[None, :, None]
    return x * emb.cos() + rotate_half(x) * emb.sin()


def original_llama(x):
    a = angles(x.shape[1])
    turns = torch.polar(torch.ones_like(a), a).view(1, x.shape[1], 1, 8)
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(3).type_as(x).transpose(1, 2)


def test_heads_behind_the_length():
    result = together([behind, original_llama], Y, second=(Y2,))
    assert result.source.count(CALL) == 2 and not result.declined


class Table(torch.nn.Module):
    """Cosines and sines kept as buffers."""

    def __init__(self):
        super().__init__()
        emb = torch.cat([angles(64)] * 2, dim=-1)
        self.register_buffer("cos", emb.cos())
        self.register_buffer("sin", emb.sin())

    def forward(self, x):
        length = x.shape[2]
        return x * self.cos[:length] + rotate_half(x) * self.sin[:length]


def test_a_table_of_cosines():
    auto = torch.export.Dim.AUTO
    inputs = (torch.randn(X),), (torch.randn(X2),)
    result = fused(Table(), *inputs, dynamic={"x": {0: auto, 2: auto}})
    assert CALL in result.source and "base=10000.0" in result.source and "self.cos" not in result.source


class Cached(torch.nn.Module):
    """Positions that begin after those of a cache."""

    def forward(self, x, past):
        start = past.shape[2]
        inverse = 10000.0 ** (-torch.arange(0, 16, 2).float() / 16)
        positions = torch.arange(start, start + x.shape[2]).float()
        emb = torch.cat([torch.outer(positions, inverse)] * 2, dim=-1)
        return torch.cat([past, x * emb.cos() + rotate_half(x) * emb.sin()], dim=2)


def test_positions_after_a_cache():
    auto = torch.export.Dim.AUTO
    inputs = torch.randn(X), torch.randn(2, 4, 9, 16)
    other = torch.randn(2, 4, 8, 16), torch.randn(2, 4, 5, 16)
    result = fused(Cached(), inputs, other, dynamic={"x": {2: auto}, "past": {2: auto}})
    assert CALL in result.source and "offset=0" not in result.source


def test_both_share_their_angles():
    def function(q, k):
        emb = torch.cat([angles(q.shape[2])] * 2, dim=-1)
        cos, sin = emb.cos(), emb.sin()
        return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin

    result = of(function, X, (2, 2, 6, 16), second=(X2, (3, 2, 11, 16)))
    assert result.source.count(CALL) == 2 and "mx.cos" not in result.source


# Near-misses


def backwards(x):
    emb = torch.cat([angles(x.shape[2])] * 2, dim=-1)
    return x * emb.cos() - rotate_half(x) * emb.sin()


def two_dimensional(x):
    n = torch.arange(x.shape[2])
    inverse = 10000.0 ** (-torch.arange(0, 8, 2).float() / 8)
    a = torch.cat([torch.outer((n // 3).float(), inverse), torch.outer((n % 3).float(), inverse)], dim=-1)
    emb = torch.cat([a, a], dim=-1)
    return x * emb.cos() + rotate_half(x) * emb.sin()


class Patches(torch.nn.Module):
    """Patches of an image, by rows: positions are those of columns in a grid of a fixed width, then of rows."""

    def __init__(self, width, rows):
        super().__init__()
        self.width, self.rows, self.patch = width, rows, torch.nn.Conv2d(3, 16, 4, 4)

    def forward(self, image):
        x = self.patch(image).flatten(2).transpose(1, 2)[:, None]
        n = torch.arange(x.shape[2])
        inverse = 10000.0 ** (-torch.arange(0, 16, 2).float() / 16)
        a = torch.outer((n // self.width if self.rows else n % self.width).float(), inverse)
        emb = torch.cat([a, a], dim=-1)
        return x * emb.cos() + rotate_half(x) * emb.sin()


@pytest.mark.parametrize(("width", "rows"), [(16, False), (100, False), (16, True)])
def test_positions_that_repeat_in_a_length_that_two_sizes_make(width, rows):
    inputs = (torch.randn(2, 3, 12, 8),), (torch.randn(1, 3, 40, 28),)
    axes = {"image": {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
    result = fused(Patches(width, rows), *inputs, dynamic=axes)
    assert CALL not in result.source and "rope" not in result.applied


def test_positions_that_count_up_in_a_length_that_two_sizes_make():
    inputs = (torch.randn(2, 3, 12, 8),), (torch.randn(1, 3, 40, 28),)
    axes = {"image": {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
    result = fused(Patches(1 << 20, False), *inputs, dynamic=axes)
    assert CALL in result.source and "base=10000.0" in result.source


def reflected(x):
    emb = torch.cat([angles(x.shape[2])] * 2, dim=-1)
    return x * emb.cos() + rotate_half(x).abs() * emb.sin()


def cosine_only(x):
    emb = torch.cat([angles(x.shape[2])] * 2, dim=-1)
    return x * emb.cos()


@pytest.mark.parametrize("function", [backwards, two_dimensional, reflected, cosine_only], ids=lambda f: f.__name__)
def test_other_rotations_are_left(function):
    result = of(function, X, second=(X2,))
    assert CALL not in result.source and "rope" not in result.applied


def test_reasons():
    result = together([backwards, two_dimensional], X, second=(X2,))
    assert result.declined.count("the positions do not count up by one") == 2


def test_positions_that_are_given():
    def function(x, positions):
        inverse = 10000.0 ** (-torch.arange(0, 16, 2).float() / 16)
        emb = torch.cat([positions[:, None, :, None].float() * inverse] * 2, dim=-1)
        return x * emb.cos() + rotate_half(x) * emb.sin()

    result = fused(Function(function), (torch.randn(X), torch.arange(12).reshape(2, 6)), dynamic=False)
    assert CALL not in result.source and result.declined == ["the angles depend on inputs or on trained weights"]


def test_trained_frequencies():
    def function(self, x):
        a = torch.outer(torch.arange(x.shape[2]).float(), self.inverse)
        emb = torch.cat([a, a], dim=-1)
        return x * emb.cos() + rotate_half(x) * emb.sin()

    inverse = 10000.0 ** (-torch.arange(0, 16, 2).float() / 16)
    inputs = (torch.randn(X),), (torch.randn(X2),)
    axes = {"args": ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO},)}
    result = fused(Function(function, inverse=inverse), *inputs, dynamic=axes)
    assert CALL not in result.source and result.declined


def test_half_of_a_rotation_that_is_used_elsewhere():
    def function(x):
        emb = torch.cat([angles(x.shape[2])] * 2, dim=-1)
        first = x * emb.cos()
        return first + rotate_half(x) * emb.sin(), first

    result = of(function, X, second=(X2,))
    assert CALL not in result.source
