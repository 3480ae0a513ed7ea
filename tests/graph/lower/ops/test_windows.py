"""Windows of signal processing against torch."""

import pytest
import torch
from conformance import run_case

WINDOWS = [torch.hann_window, torch.hamming_window, torch.bartlett_window, torch.blackman_window, torch.kaiser_window]


@pytest.mark.parametrize("length", [0, 1, 2, 9])
def test_window(length):
    def windows(x):
        return tuple(x + make(length, periodic=periodic) for make in WINDOWS for periodic in (True, False))

    outcome = run_case(windows, (torch.zeros(length),), {})
    assert outcome.status == "pass", outcome.reason


def test_parameters():
    outcome = run_case(
        lambda x: (x * torch.hamming_window(7, True, 0.6, 0.3), torch.kaiser_window(7, True, 2.5, dtype=torch.float16)),
        (torch.ones(7),),
        {},
    )
    assert outcome.status == "pass", outcome.reason
