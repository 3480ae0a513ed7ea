"""Reductions, running and order statistics, softmax against torch."""

import pytest
import torch
from conformance import run_calls, run_case

torch.manual_seed(0)
X = torch.randn(3, 4, 5)
NAN = torch.where(X > 0.8, torch.nan, X)
TIES = torch.tensor([[3.0, 1.0, 3.0, 2.0], [2.0, 2.0, 1.0, 1.0]])
N = torch.arange(-6, 6).reshape(3, 4)
REDUCTIONS = "sum mean amax amin var std nansum nanmean all any".split()


def check(function, *args):
    outcome = run_case(function, args, {})
    assert outcome.status == "pass", outcome.reason


@pytest.mark.parametrize("kwargs", [{}, {"dim": 1}, {"dim": (0, -1)}, {"dim": [-1], "keepdim": True}], ids=str)
def test_axes(kwargs):
    check(lambda x: tuple(getattr(torch, name)(x, **kwargs) for name in REDUCTIONS), X)


@pytest.mark.parametrize("x", [X, NAN, N], ids=["floats", "nan", "integers"])
def test_values_and_indices(x):
    functions = [torch.max, torch.min, torch.median, torch.cummax, torch.cummin]
    check(lambda x: tuple(function(x, 1) for function in functions), x)


CASES = [
    (torch.sum, torch.full((300,), 100, dtype=torch.int8)),
    (lambda x: (x.sum(0), x.prod(0), x.cumsum(0)), X > 0),
    (lambda x: (x.sum(0), x.mean(), x.softmax(0), x.log_softmax(0), x.cumsum(0)), torch.tensor(3.0)),
    (lambda x: (x.prod(), x.prod(1), x.cumsum(1), x.cumprod(0)), N + 20),
    (lambda x: (x.var(1, correction=2), x.var(2, unbiased=False), x.std(), (1e4 + x).var(1)), X),
    (lambda x: (*torch.var_mean(x, (0, 1), keepdim=True), *torch.std_mean(x, 1)), X),
    (lambda x: (x.std(1), x.sum(1), x.mean(), x.softmax(-1), x.log_softmax(-1)), X.bfloat16()),
    (lambda x: (x.argmax(1), x.argmin(), x.argmax(0, keepdim=True)), TIES),
    (lambda x: (*x.aminmax(dim=1), *x.kthvalue(3, 1), *x.topk(3), *x.topk(2, 0, largest=False), x.msort()), X),
    (lambda x: (*x.nanmedian(1), x.nanmedian(), x.median(), *x.sort(1, descending=True)), NAN),
    (lambda x: (*x.sort(stable=True), *x.sort(stable=True, descending=True), x.argsort(dim=0, stable=True)), TIES),
    (lambda x: x.mode(1), TIES),
    (lambda x: (x.logsumexp(1), x.log_softmax(2), x.logcumsumexp(1)), 50 * X),
    (lambda x: x.logsumexp(1), torch.full((2, 2), -torch.inf)),
    (lambda x: torch.bincount(x, minlength=6), torch.tensor([1, 3, 1])),
    (lambda x: (torch.histc(x, 6, -1, 1), torch.histc(x, 4), *torch.histogram(x, 5, density=True)), X),
    (lambda x: x.quantile(0.3, dim=1), X),
]


def test_arguments():
    outcome = run_calls([(function, (x,), {}) for function, x in CASES])
    assert outcome.status == "pass", outcome.reason


def test_weighted_counts():
    check(torch.bincount, torch.tensor([1, 3, 1]), torch.tensor([0.5, 1.0, 2.0]))


def test_norms_of_vectors():
    norm = torch.linalg.vector_norm
    orders = (2, 1, 0, 3, -2, 0.5, torch.inf, -torch.inf)
    axes = (None, 1, (0, 2), -1)
    check(lambda x: tuple(norm(x, o, axis, keepdim=axis == 1) for o in orders for axis in axes), X)
    check(lambda x: (norm(x), norm(x, 1), norm(x, 0), torch.dist(x, x + 1, 3)), X[0, 0, 0])
