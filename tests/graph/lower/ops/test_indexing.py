"""Reading by index arrays and masks against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conformance import run_calls, run_case

X = torch.arange(24.0).reshape(2, 3, 4) - 7
INDEX = torch.tensor([1, 0, -1])
MASK = X[0] > -2

CASES: dict[str, Any] = {
    "rows": lambda x, i, m: x[i],
    "inner axis": lambda x, i, m: x[:, i],
    "two indices": lambda x, i, m: x[:, i, i],
    "separated indices": lambda x, i, m: x[i, :, i],
    "index with new axis": lambda x, i, m: x[:, None, i[:, None]],
    "mask": lambda x, i, m: x[:, m],
    "mask of the last axis": lambda x, i, m: x[..., x[0, 0] > -6],
    "whole mask": lambda x, i, m: x[x > 0],
    "index_select": lambda x, i, m: x.index_select(2, i.abs()),
    "index_select of 0-d": lambda x, i, m: x[0, 0, 0].index_select(0, i[1]),
    "gather": lambda x, i, m: x.gather(1, i.abs().reshape(1, 3, 1)),
    "gather of fewer": lambda x, i, m: x.gather(2, i.abs().reshape(1, 1, 3)),
    "gather of nothing": lambda x, i, m: x.gather(2, i[:0].reshape(1, 1, 0)),
    "take": lambda x, i, m: x.take(i),
    "take_along_dim": lambda x, i, m: x.take_along_dim(i.abs().reshape(1, 3, 1), 1),
    "masked_fill": lambda x, i, m: x.masked_fill(m, -torch.inf),
    "masked_fill of a tensor": lambda x, i, m: x.masked_fill(m, x[0, 0, 1]),
    "masked_select": lambda x, i, m: x.masked_select(m),
    "masked_scatter": lambda x, i, m: x.masked_scatter(m, x.flip(0)),
    "nonzero": lambda x, i, m: x.nonzero(),
    "nonzero of a mask": lambda x, i, m: m.nonzero(),
    "nonzero_static": lambda x, i, m: torch.nonzero_static(m, size=15),
    "nonzero_static cut": lambda x, i, m: torch.nonzero_static(m, size=3, fill_value=7),
    "tril": lambda x, i, m: x.tril(-1),
    "triu": lambda x, i, m: x.triu(2),
}


def test_reading() -> None:
    outcome = run_calls([(function, (X, INDEX, MASK), {}) for function in CASES.values()])
    assert outcome.status == "pass", outcome.reason


def test_dtypes() -> None:
    outcome = run_calls(
        [
            (CASES[name], (X.to(dtype), INDEX, MASK), {})
            for name in ("rows", "mask", "gather", "take", "masked_select", "nonzero")
            for dtype in (torch.bool, torch.int8, torch.int64, torch.bfloat16, torch.complex64)
        ]
    )
    assert outcome.status == "pass", outcome.reason


@pytest.mark.parametrize("mask", [MASK & False, MASK | True], ids=["nothing", "everything"])
def test_mask_of_nothing_and_everything(mask: torch.Tensor) -> None:
    names = ("mask", "masked_select", "masked_fill", "masked_scatter", "nonzero of a mask", "nonzero_static")
    outcome = run_calls([(CASES[name], (X, INDEX, mask), {}) for name in names])
    assert outcome.status == "pass", outcome.reason


def test_int64_values_are_exact() -> None:
    big = torch.tensor([2**53 + 1, 5, -(2**40) - 1])
    assert run_case(lambda x, i: (x[i], x[x > 5], x.gather(0, i.abs())), (big, INDEX), {}).status == "pass"


def test_wrong_element_is_seen() -> None:
    """The cases above can fail."""
    from conformance import compare

    assert compare([X[INDEX]], [X[INDEX.roll(1)]]).status == "wrong"
