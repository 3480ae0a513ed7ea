"""Products of matrices against torch."""

from __future__ import annotations

import pytest
import torch
from conformance import Call, Case, run_calls, run_case, to_mx
from torch.utils import _pytree as pytree

from mlxport.graph.capture.export import export
from mlxport.graph.lower.one_function import compile_source, flat_source


def numbers(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(sizes))
    return (torch.randn(*sizes, generator=generator) * 5).to(dtype)


MATMULS = [
    ((3, 4), (4, 5)),
    ((4,), (4,)),
    ((3, 4), (4,)),
    ((4,), (4, 5)),
    ((2, 3, 4), (4, 5)),
    ((2, 1, 3, 4), (6, 4, 5)),
    ((3, 0), (0, 2)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.complex64])
def test_matmul(dtype: torch.dtype) -> None:
    # torch's complex dot is a BLAS call that another preloaded BLAS answers wrongly; see test_complex_dot
    sizes = [(a, b) for a, b in MATMULS if not dtype.is_complex or len(a) + len(b) > 2]
    outcome = run_calls([(torch.matmul, (numbers(*a, dtype=dtype), numbers(*b, dtype=dtype)), {}) for a, b in sizes])
    assert outcome.status == "pass", outcome.reason


def test_integers_beyond_float32() -> None:
    a = torch.tensor([[2**30 + 1, 1], [3, 2**24 + 1]])
    assert run_case(torch.mm, (a, a), {}).status == "pass"


def test_integers_wrap() -> None:
    arrays = [torch.full((2, 3), 100, dtype=dtype) for dtype in (torch.int8, torch.int32, torch.uint8)]
    outcome = run_calls([(torch.mm, (a, a.T), {}) for a in arrays])
    assert outcome.status == "pass", outcome.reason


ADDED = {
    "addmm": (torch.addmm, (3, 5), (3, 4), (4, 5)),
    "addmm of a row": (torch.addmm, (5,), (3, 4), (4, 5)),
    "baddbmm": (torch.baddbmm, (2, 3, 5), (2, 3, 4), (2, 4, 5)),
    "addmv": (torch.addmv, (3,), (3, 4), (4,)),
    "addbmm": (torch.addbmm, (3, 5), (2, 3, 4), (2, 4, 5)),
    "addr": (torch.addr, (3, 4), (3,), (4,)),
}


@pytest.mark.parametrize("options", [{}, {"alpha": 2, "beta": 3}, {"alpha": 0, "beta": 1}, {"beta": 0}], ids=str)
def test_added(options: dict[str, int]) -> None:
    calls: list[Call] = []
    for function, *sizes in ADDED.values():
        arguments = tuple(numbers(*size) for size in sizes)
        calls += [(function, arguments, options), (function, tuple(a.long() for a in arguments), options)]
    outcome = run_calls(calls)
    assert outcome.status == "pass", outcome.reason


def test_beta_of_zero_ignores_nan() -> None:
    calls: list[Call] = []
    for function, *sizes in ADDED.values():
        first, *rest = (numbers(*size) for size in sizes)
        calls.append((function, (first * torch.nan, *rest), {"beta": 0}))
    outcome = run_calls(calls)
    assert outcome.status == "pass", outcome.reason


def test_complex_dot() -> None:
    a, b = numbers(5) + 2j, numbers(5) - 1j
    leaves, structure = pytree.tree_flatten(((a, b), {}))
    for function, wanted in ((torch.dot, (a * b).sum()), (torch.vdot, (a.conj() * b).sum())):
        source = flat_source(export(Case(function, structure, leaves), (a, b)).graph)
        (got,) = compile_source(source)(to_mx(a), to_mx(b))
        assert torch.allclose(torch.tensor(got.item()), wanted)


def test_dot_and_vdot() -> None:
    a, b = numbers(5), numbers(5)
    for function in (torch.dot, torch.vdot, torch.inner):
        assert run_case(function, (a, b), {}).status == "pass"


def test_wrong_result_is_seen() -> None:
    """The cases above can fail: the port of one order of factors is not the other's result."""
    from conformance import compare

    a, b = numbers(3, 3), numbers(3, 3) + 1
    assert compare([a @ b], [b @ a]).status == "wrong"
