"""Resizing, grids, padding and moving channels into space through the port, compared with torch."""

import pytest
import torch
import torch.nn.functional as F
from conformance import run_calls, run_case

torch.manual_seed(0)
X1, X2, X3 = torch.randn(2, 3, 7), torch.randn(2, 3, 7, 5), torch.randn(2, 3, 4, 5, 3)


def passes(function, args, kwargs=None):
    outcome = run_case(function, args, kwargs or {})
    assert outcome.status == "pass", outcome


SIZES = [
    (X1, {"size": 4, "mode": "nearest"}),
    (X2, {"scale_factor": 1.7, "mode": "nearest"}),
    (X2, {"scale_factor": (0.6, 2.3), "mode": "nearest-exact"}),
    (X1, {"size": 12, "mode": "linear", "align_corners": True}),
    (X2, {"size": (10, 3), "mode": "bilinear"}),
    (X2, {"scale_factor": 1.7, "mode": "bilinear"}),
    (X2, {"scale_factor": 1.7, "mode": "bilinear", "recompute_scale_factor": True}),
    (X2, {"size": (4, 3), "mode": "bilinear", "antialias": True}),
    (X2, {"size": (9, 9), "mode": "bicubic", "align_corners": True}),
    (X2, {"size": (4, 8), "mode": "bicubic", "antialias": True}),
    (X3, {"size": (3, 7, 3), "mode": "trilinear"}),
    (X3, {"size": (3, 2, 2), "mode": "area"}),
]


def test_interpolate():
    outcome = run_calls([(F.interpolate, (x,), options) for x, options in SIZES])
    assert outcome.status == "pass", outcome.reason


def test_grid_sample():
    grid = torch.rand(2, 4, 6, 2) * 3 - 1.5
    outcome = run_calls(
        [
            (F.grid_sample, (X2, grid, mode, padding, corners), {})
            for mode, corners in (("bilinear", True), ("bilinear", False), ("nearest", True), ("bicubic", False))
            for padding in ("zeros", "border", "reflection")
        ]
    )
    assert outcome.status == "pass", outcome.reason


def test_grid_sample_of_volumes_and_affine_grid():
    passes(F.grid_sample, (X3, torch.rand(2, 2, 3, 4, 3) * 3 - 1.5), {"align_corners": False})
    passes(F.affine_grid, (torch.randn(2, 2, 3), [2, 3, 4, 5]), {"align_corners": False})
    passes(F.affine_grid, (torch.randn(2, 3, 4), [2, 3, 4, 5, 2]), {"align_corners": True})


PADS = [
    ("constant", (1, 2, 0, 3)),
    ("constant", (-1, 2, 1, -2)),
    ("reflect", (1, 2, 3, 0)),
    ("replicate", (1, 2, 9, 0)),
    ("circular", (1, 2, 3, 0)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_pad(dtype):
    x = (X2 * 9).to(dtype)
    outcome = run_calls([(F.pad, (x, pad, mode, 3 if mode == "constant" else None), {}) for mode, pad in PADS])
    assert outcome.status == "pass", outcome.reason


def test_pad_all_axes_of_a_vector_and_to_nothing():
    passes(F.pad, (torch.randn(4), (2, 1)))
    passes(F.pad, (torch.randn(4), (-2, -2)))
    passes(F.pad, (torch.randn(2, 3) > 0, (1, 1)), {"value": True})


@pytest.mark.parametrize("shape", [(2, 12, 4, 6), (12, 4, 6), (2, 1, 12, 4, 6)])
def test_channels_to_space_and_back(shape):
    x = torch.randn(shape)
    passes(F.pixel_shuffle, (x, 2))
    passes(F.pixel_unshuffle, (x, 2))


def test_channel_shuffle():
    passes(F.channel_shuffle, (torch.randn(2, 12, 4, 6), 3))
