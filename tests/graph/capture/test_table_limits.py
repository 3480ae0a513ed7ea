"""Beyond a table torch raises: the port refuses sizes that lead there, and says of values that it does not look."""

from __future__ import annotations

import mlx.core as mx
import pytest
import torch
from comparing import compared
from torch import nn

import mlxport


class Tables(nn.Module):
    """Words and places; ``function`` says how places are made."""

    def __init__(self, function, rows=18):
        super().__init__()
        self.words, self.places = nn.Embedding(50, 8, padding_idx=1), nn.Embedding(rows, 8)
        self.table = nn.Parameter(torch.randn(rows, 8))
        self.register_buffer("order", torch.arange(rows)[None], persistent=False)
        self.function = function

    def forward(self, ids, *more):
        return self.words(ids) + self.function(self, ids, *more)


def counted(m, ids):
    return m.places(torch.arange(ids.shape[1], device=ids.device))


def after_padding(m, ids):
    mask = ids.ne(1).int()
    return m.places((torch.cumsum(mask, 1).type_as(mask) * mask).long() + 1)


def of_ones(m, ids):
    return m.places(torch.ones_like(ids).cumsum(1) - 1 + 2)


def clamped(m, ids):
    return m.places(torch.arange(ids.shape[1]).clamp(max=17))


def relative(m, ids):
    steps = torch.arange(ids.shape[1])
    return m.places(steps[None] - steps[:, None] + 8).mean(0)


# How places are made, and the longest sequence (None: any).
SIZES = {
    "arange": (counted, 18),
    "a buffer": (lambda m, ids: m.places(m.order[:, : ids.shape[1]]), 18),
    "indexing": (lambda m, ids: m.table[torch.arange(ids.shape[1])], 18),
    "index_select": (lambda m, ids: m.table.index_select(0, torch.arange(ids.shape[1])), 18),
    "an offset": (lambda m, ids: m.places(torch.arange(ids.shape[1]).unsqueeze(0).expand_as(ids) + 2), 16),
    "from the end": (lambda m, ids: m.places(torch.arange(ids.shape[1]).flip(0)), 18),
    "every second": (lambda m, ids: m.places(torch.arange(ids.shape[1]) * 2), 9),
    "not padded": (after_padding, 16),
    "counted ones": (of_ones, 16),
    "clamped": (clamped, None),
    "relative": (relative, 9),
    "a slice": (lambda m, ids: m.table[: ids.shape[1]], 18),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_beyond_a_table_are_refused(name):
    torch.manual_seed(0)
    function, longest = SIZES[name]
    module = Tables(function).eval()
    port = mlxport.port(module, (torch.randint(2, 50, (2, 7)),))
    most = longest or 30
    compared(module, port, (torch.randint(2, 50, (3, most)),))
    if longest is None:
        return
    with pytest.raises((IndexError, RuntimeError)):  # what torch says
        module(torch.randint(2, 50, (3, most + 1)))
    with pytest.raises(ValueError, match=rf"is {most + 1} and must be at least \d+ and at most {most}"):
        port(mx.full((3, most + 1), 5))


def test_two_sizes_together():
    def cached(m, ids, past):
        return m.places(torch.arange(past.shape[1], past.shape[1] + ids.shape[1]))

    module = Tables(cached).eval()
    port = mlxport.port(module, (torch.randint(2, 50, (2, 4)), torch.zeros(2, 3, 8)))
    compared(module, port, (torch.randint(2, 50, (2, 8)), torch.zeros(2, 10, 8)))
    with pytest.raises(ValueError, match=r"ids.shape\[1\] \+ more_0.shape\[1\] <= 18"):
        port(mx.full((2, 8), 5), mx.zeros((2, 11, 8)))


PLACE, ONES = torch.arange(7), torch.ones(2, 7, dtype=torch.int64)
# What the places are made of, further inputs, and what is said of them.
VALUES = {
    "words": (counted, (), "Values of ids must be below 50, the rows of words.weight (not checked)."),
    "places": (lambda m, ids, x: m.places(x), (PLACE,), "Values of more_0 must be below 18, the rows of places.weight"),
    "views of them": (
        lambda m, ids, x: m.table[x[:, None].expand(7, 1)[:, 0]], (PLACE,),
        "Values of more_0 must be below 18, the rows of table (not checked).",
    ),
    "computed": (lambda m, ids, x: m.places(x.cumsum(1)), (ONES,), "Places computed from more_0 must be below 18"),
    "bounded": (lambda m, ids, x: m.places(x.clamp(0, 17)) + m.table[x % 18], (PLACE,), ""),
    "a mask": (lambda m, ids, x: m.places(x.cumsum(1)), (ONES.bool(),), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_values_that_are_not_checked_are_named(name, tmp_path):
    function, more, said = VALUES[name]
    example = (torch.randint(2, 50, (2, 7)), *more)
    report = mlxport.port_folder(lambda: (Tables(function).eval(), example), tmp_path / "out", dry_run=True)
    source = mlxport.port(Tables(function).eval(), example).source
    root = source.index("class Tables")
    document = " ".join(source[root : source.index("def __init__", root)].split())
    assert said in document and any(said in note for note in report.notes)
    assert '"""Tables limit the inputs' in document and ("more_0 must" in document) is ("more_0" in said)
    assert max(map(len, source.splitlines())) <= 120


def test_without_tables_nothing_is_said():
    assert "Tables limit" not in mlxport.port(nn.Linear(4, 4).eval(), torch.ones(2, 4)).source
