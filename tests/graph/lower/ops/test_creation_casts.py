"""New tensors, casts and dynamic sizes against torch."""

import pytest
import torch
from conformance import run_case, to_mx

from mlxport.graph.capture.export import export
from mlxport.graph.lower.one_function import compile_source, flat_source

X = torch.tensor([[-1.5, 0.0, 2.7], [300.2, -0.0, 1.0]])


CREATED = [
    lambda x: torch.zeros(2, 3) + x,
    lambda x: torch.full((2, 3), 2.5, dtype=torch.float16),
    lambda x: torch.full((2,), 7),
    lambda x: torch.full((2,), True),
    torch.ones_like,
    lambda x: torch.zeros_like(x, dtype=torch.int64),
    lambda x: torch.full_like(x, -0.0),
    lambda x: x.new_full((3,), 4),
    lambda x: x.new_zeros((2, 0)),
    lambda x: torch.arange(5),
    lambda x: torch.arange(1, 8, 3, dtype=torch.int32),
    lambda x: torch.arange(0.5, 3.0, 0.25),
    lambda x: torch.arange(4, 0, -1, dtype=torch.bfloat16),
    lambda x: torch.linspace(-1, 1, 7),
    lambda x: torch.linspace(0, 10, 4, dtype=torch.int64),
    lambda x: torch.eye(3),
    lambda x: torch.eye(2, 4, dtype=torch.int64),
    lambda x: torch.scalar_tensor(3, dtype=torch.int16),
    lambda x: x.clone().fill_(3.0),
]


def test_creation():
    outcome = run_case(lambda x: tuple(function(x) for function in CREATED), (X,), {})
    assert outcome.status == "pass", outcome.reason


def test_casts():
    dtypes = (
        torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.float64, torch.complex64,
    )  # fmt: skip
    outcome = run_case(lambda x: tuple(x.to(dtype) for dtype in dtypes), (X,), {})
    assert outcome.status == "pass", outcome.reason


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_cast_of_complex_keeps_the_real_part(dtype):
    assert run_case(lambda x: x.to(dtype), (torch.complex(X, X + 1),), {}).status == "pass"


def test_what_only_moves_emits_nothing():
    program = export(_Module(lambda x: x.clone().contiguous().detach().to(torch.float32) + 1), (X,))
    source = flat_source(program.graph)
    assert "+ 1" in source
    assert not any(word in source for word in ("astype", "mx.array", "contiguous", "mx."))


class _Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.zeros(x.shape[0], 2),
        lambda x: torch.arange(x.shape[0]) * 2,
        lambda x: torch.arange(x.shape[0], -x.shape[0], -1.0, dtype=torch.int64),
        lambda x: torch.full_like(x, 3.0),
        lambda x: x.new_ones(x.shape[0] + 1),
        lambda x: torch.eye(x.shape[0]),
        lambda x: x.mean(0) + x.var(0),
        lambda x: torch.softmax(x, 0),
    ],
)
def test_sizes_are_those_of_the_call(function):
    module = _Module(function)
    dynamic = {"x": {0: torch.export.Dim("n", min=2)}}
    program = export(module, (torch.randn(4, 3),), dynamic=dynamic)
    port = compile_source(flat_source(program.graph))
    other = torch.randn(7, 3)
    (got,) = port(to_mx(other))
    wanted = module(other)
    assert tuple(got.shape) == tuple(wanted.shape)
    torch.testing.assert_close(torch.tensor(got.tolist(), dtype=wanted.dtype), wanted, rtol=1e-4, atol=1e-5)
