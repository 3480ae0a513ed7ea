"""Convolutions and pooling through the port, compared with torch."""

import pytest
import torch
import torch.nn.functional as F
from conformance import run_calls, run_case

torch.manual_seed(0)
X1, X2, X3 = torch.randn(2, 4, 11), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 5, 6, 7)


def passes(function, args, kwargs=None):
    outcome = run_case(function, args, kwargs or {})
    assert outcome.status == "pass", outcome


def all_pass(calls):
    outcome = run_calls(calls)
    assert outcome.status == "pass", outcome


CONVOLUTIONS = [
    (F.conv1d, X1, (6, 2, 3), {"stride": 2, "padding": 1, "groups": 2}),
    (F.conv1d, X1[0], (6, 4, 4), {"padding": "same"}),
    (F.conv2d, X2, (6, 4, 3, 2), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    (F.conv2d, X2, (6, 4, 3, 4), {"padding": "same", "dilation": (2, 1)}),
    (F.conv2d, X2, (8, 1, 3, 3), {"groups": 4, "padding": "valid"}),
    (F.conv3d, X3, (6, 2, 2, 3, 3), {"groups": 2, "padding": 1}),
    (F.conv_transpose1d, X1, (4, 3, 3), {"stride": 3, "output_padding": 2, "groups": 2}),
    (F.conv_transpose2d, X2, (4, 2, 3, 2), {"stride": (2, 3), "padding": (2, 0), "groups": 2}),
    (F.conv_transpose2d, X2[0], (4, 5, 3, 3), {"dilation": 2, "padding": 1}),
    (F.conv_transpose3d, X3, (4, 3, 2, 2, 3), {"stride": 2, "output_padding": (1, 0, 1), "groups": 2}),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("biased", [True, False])
def test_conv(biased):
    calls = []
    for function, x, weight, options in CONVOLUTIONS:
        outputs = weight[1] * options.get("groups", 1) if "transpose" in function.__name__ else weight[0]
        bias = torch.randn(outputs) if biased else None
        calls.append((function, (x, torch.randn(weight), bias), options))
    all_pass(calls)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_conv_in_dtypes_that_mlx_does_not_convolve(dtype):
    x = torch.randint(-9, 9, (2, 4, 9, 8)).to(dtype)
    passes(F.conv2d, (x, torch.randint(-9, 9, (6, 2, 3, 3)).to(dtype)), {"groups": 2, "padding": 1, "stride": 2})
    passes(F.conv_transpose2d, (x, torch.randint(-9, 9, (4, 3, 3, 3)).to(dtype)), {"padding": 1, "stride": 2})


POOLS = [
    (F.max_pool1d, X1, {"kernel_size": 3, "stride": 2, "padding": 1}),
    (F.max_pool2d, X2, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    (F.max_pool2d, X2[0], {"kernel_size": (3, 2), "dilation": (2, 1), "stride": (1, 2)}),
    (F.max_pool2d, X2, {"kernel_size": 3, "stride": 2, "padding": 1, "return_indices": True}),
    (F.max_pool3d, X3, {"kernel_size": 2, "return_indices": True, "ceil_mode": True}),
    (F.avg_pool1d, X1, {"kernel_size": 4, "stride": 3, "padding": 2}),
    (F.avg_pool2d, X2, {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
    (F.avg_pool2d, X2, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    (F.avg_pool2d, X2, {"kernel_size": 99999, "ceil_mode": True}),
    (F.avg_pool2d, X2, {"kernel_size": 99, "padding": 2, "ceil_mode": True, "count_include_pad": False}),
    (F.avg_pool2d, X2, {"kernel_size": (2, 3), "divisor_override": 7}),
    (F.avg_pool3d, X3, {"kernel_size": 3, "padding": 1, "ceil_mode": True, "count_include_pad": False}),
    (F.adaptive_avg_pool2d, X2, {"output_size": (4, 3)}),
    (F.adaptive_avg_pool2d, X2[0], {"output_size": (1, 1)}),
    (F.adaptive_avg_pool3d, X3, {"output_size": (2, None, 4)}),
    (F.adaptive_max_pool1d, X1, {"output_size": 4, "return_indices": True}),
    (F.adaptive_max_pool2d, X2, {"output_size": (5, 3), "return_indices": True}),
]


def test_pool():
    all_pass([(function, (x,), options) for function, x, options in POOLS])


def test_max_pool_of_negative_infinity_and_nan():
    x = X2.clone()
    x[0, 0], x[1, 1, 2, 2] = -torch.inf, torch.nan
    passes(F.max_pool2d, (x, 3), {"stride": 2, "padding": 1})


def test_unpool_puts_values_back():
    pooled, indices = F.max_pool2d(X2, 2, return_indices=True)
    passes(F.max_unpool2d, (pooled, indices, 2), {"output_size": (9, 8)})


def test_patches_as_columns_and_back():
    passes(F.unfold, (X2, (3, 2)), {"padding": 1, "stride": (2, 1), "dilation": (1, 2)})
    passes(F.fold, (torch.randn(2, 12, 16), (6, 5), (3, 2)), {"stride": 1})


def test_random_windows_are_refused():
    outcome = run_case(F.fractional_max_pool2d, (X2, 2, (4, 4)), {})
    assert outcome.status == "unsupported" and "rand" in outcome.reason
