"""Views against torch: every case runs through export, lowering and MLX."""

from __future__ import annotations

import mlx.core as mx
import torch
from conformance import Call, run_calls, run_case, to_mx, to_numpy

from mlxport.graph.capture.export import export
from mlxport.graph.lower.one_function import compile_source, flat_source

X = torch.arange(24.0).reshape(2, 3, 4)
ONES = torch.arange(3.0).reshape(1, 3, 1)

CASES = {
    "view": lambda x: x.view(6, -1),
    "view to a vector": lambda x: x.view(-1),
    "reshape to 0-d": lambda x: x[:1, :1, :1].reshape(()),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(2, (2, -1)),
    "expand": lambda x: x[:, :1].expand(5, -1, 3, -1),
    "expand to its own shape": lambda x: x.expand(2, -1, 4) + 1,
    "permute": lambda x: x.permute(2, 0, -2),
    "transpose": lambda x: x.transpose(-1, 0),
    "t": lambda x: x[0].t(),
    "t of a vector": lambda x: x[0, 0].t() + 1,
    "unsqueeze": lambda x: [x.unsqueeze(dim) for dim in range(-4, 4)],
    "view of a dtype": lambda x: x.view(torch.int32),
    "narrower view": lambda x: x.view(torch.int16),
    "broadcast_to": lambda x: x[0, :, :1].broadcast_to(2, 3, 5),
    "movedim": lambda x: x.movedim((0, 1), (-1, 0)),
    "view_as_real": lambda x: torch.view_as_real(torch.complex(x, -x)),
    "view_as_complex": lambda x: torch.view_as_complex(x.reshape(3, 4, 2)),
}
SQUEEZES = {
    "all": lambda x: x.squeeze(),
    "one": lambda x: x.squeeze(-1),
    "not one": lambda x: x.squeeze(1) + 1,
    "several": lambda x: x.squeeze((0, 1, 2)),
}


def test_views() -> None:
    calls: list[Call] = [(function, (X,), {}) for function in CASES.values()]
    outcome = run_calls([*calls, *((function, (ONES,), {}) for function in SQUEEZES.values())])
    assert outcome.status == "pass", outcome.reason


def test_dtypes() -> None:
    dtypes = (torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.complex64)
    outcome = run_calls([(lambda x: x.reshape(4, -1).t().unsqueeze(1), (X.to(dtype),), {}) for dtype in dtypes])
    assert outcome.status == "pass", outcome.reason


def test_empty() -> None:
    assert run_case(lambda x: x.reshape(0, 5, 2), (torch.zeros(2, 0, 3),), {}).status == "pass"


class Views(torch.nn.Module):
    """Views with the batch size in their arguments."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.reshape(x.shape[0], 2, -1).permute(1, 0, 2)
        return x.reshape(2 * x.shape[1], -1).unsqueeze(0).expand(3, -1, -1)


def test_dynamic_batch() -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = export(Views(), (torch.randn(4, 6),), dynamic={"x": {0: batch}})
    function = compile_source(flat_source(program.graph))
    for size in (2, 4, 7):
        x = torch.randn(size, 6)
        (got,) = function(to_mx(x))
        assert (to_numpy(got) == Views()(x).numpy()).all()


def test_view_that_does_nothing_is_not_written() -> None:
    class Nothing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 3).permute(0, 1).expand(2, 3).squeeze(0).contiguous() + 1

    source = flat_source(export(Nothing(), (torch.zeros(2, 3),)).graph)
    names = ("reshape", "transpose", "broadcast_to", "squeeze", "contiguous")
    assert not [name for name in names if f"{name}(" in source]


def test_complex_of_half_is_refused() -> None:
    outcome = run_case(torch.view_as_complex, (torch.zeros(3, 2, dtype=torch.float16),), {})
    assert outcome.status in ("unsupported", "unexported") and "pass" not in outcome.status


def test_comparison_sees_another_shape() -> None:
    """The cases above can fail."""
    from conformance import compare

    assert compare([torch.zeros(3, 2)], [torch.zeros(2, 3)]).status == "wrong"
    assert to_mx(torch.zeros(2)).dtype == mx.float32
