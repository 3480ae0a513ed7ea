"""What forwards ask of values, which captures have none of: asserts, masks of Transformers, numbers in buffers."""

from __future__ import annotations

import pytest
import torch
from comparing import compared, randomised
from torch import nn
from torch.nn import functional

import mlxport
from mlxport.errors import MlxportError, UsageError


class Asserted(nn.Module):
    def forward(self, x):
        assert (x.abs() < 100).all(), "too large"
        if torch.isnan(x).any():
            raise ValueError("NaN")
        if not (x > -100).all():
            raise ValueError("too small")
        return x * 2


class Overlapped(nn.Module):
    """An inverse STFT that checks its windows, as vocoders do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(16) + 0.1)

    def forward(self, spectrum):
        frames = spectrum.shape[-1]
        length = (frames - 1) * 4 + 16
        pieces = torch.fft.irfft(spectrum, 16, dim=1) * self.window[None, :, None]
        y = functional.fold(pieces, (1, length), (1, 16), stride=(1, 4))[:, 0, 0, 6:-6]
        squares = self.window.square().expand(1, frames, -1).transpose(1, 2)
        envelope = functional.fold(squares, (1, length), (1, 16), stride=(1, 4)).squeeze()[6:-6]
        assert (envelope > 1e-11).all()
        return y / envelope


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)

    def forward(self, x, mask):
        return self.layers(x, mask)


class Numbered(nn.Module):
    """Pads by numbers that it keeps as tensors, as EnCodec does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, stride=2)
        for name, number in (("stride", 2), ("width", 3), ("padding", 1)):
            self.register_buffer(name, torch.tensor(number), persistent=False)

    def forward(self, x):
        frames = torch.ceil((x.shape[-1] - self.width + self.padding) / self.stride + 1).to(torch.int64) - 1
        further = frames * self.stride + self.width - self.padding - x.shape[-1]
        if max(self.padding, further) > x.shape[-1]:
            raise ValueError("too short")
        return self.conv(functional.pad(x, (self.padding, further)))


class Written(nn.Module):
    """Takes the number of its calls for a size."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(1))

    def forward(self, x):
        self.calls += 1
        return x[:, : int(self.calls)]


class Filled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, mask):
        energies = self.linear(x)
        energies.data.masked_fill_(mask, -1e9)
        return energies.softmax(-1)


class ThroughNumpy(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.numpy() * 2)


def causal(length):
    return nn.Transformer.generate_square_subsequent_mask(length)


@pytest.mark.parametrize(
    ("module", "example", "others"),
    [
        (Asserted(), (torch.randn(2, 3),), (torch.randn(4, 1),)),
        (Overlapped(), (torch.randn(2, 9, 7, dtype=torch.complex64),), (torch.randn(1, 9, 5, dtype=torch.complex64),)),
        (Encoder(), (torch.randn(5, 3, 8), causal(5)), (torch.randn(4, 1, 8), causal(4))),
        (Encoder(), (torch.randn(5, 3, 8), torch.randn(5, 5)), (torch.randn(5, 3, 8), causal(5))),
        (Numbered(), (torch.randn(2, 4, 9),), (torch.randn(1, 4, 14),)),
        (Filled(), (torch.randn(3, 4), torch.rand(3, 4) > 0.5), (torch.randn(1, 4), torch.rand(1, 4) > 0.5)),
    ],
    ids=["asserts", "overlap", "causal mask", "another mask", "numbers", "data"],
)
def test_values_that_are_known(module, example, others):
    module = randomised(module)
    ported = mlxport.port(module, example)
    compared(module, ported, example)
    compared(module, ported, others)


def test_an_assertion_that_does_not_hold_is_told():
    with pytest.raises(UsageError, match="in torch it raises AssertionError: too large"):
        mlxport.port(Asserted().eval(), (torch.full((2, 3), 200.0),))


def test_a_number_that_changes_is_not_known():
    with pytest.raises(MlxportError, match="torch.export cannot capture Written"):
        mlxport.port(Written().eval(), (torch.randn(2, 5),))


def without_values():
    with torch.device("meta"):
        return nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("module", "example", "message", "hint"),
    [
        (
            nn.Sequential(nn.LazyLinear(6)),
            torch.randn(3, 4),
            "0.weight has no size yet (LazyLinear)",
            "call the module",
        ),
        (without_values(), torch.randn(3, 4), "weight is on the meta device", "module.to_empty(device='cpu')"),
        (
            nn.Linear(4, 4),
            torch.randn(3, 4, device="meta"),
            "of shape (3, 4) on the meta device",
            "give one with values",
        ),
        (ThroughNumpy(), torch.randn(3, 4), "test_known_values.py:", "leaves torch for NumPy there"),
    ],
    ids=["lazy", "meta", "meta input", "numpy"],
)
def test_what_to_change_is_said(module, example, message, hint):
    with pytest.raises(MlxportError) as caught:
        mlxport.port(module.eval(), (example,))
    assert message in str(caught.value) and hint in caught.value.hint


def test_frequencies_and_a_loss_that_looks_at_its_variance():
    class Module(nn.Module):
        def forward(self, x, y):
            loss = nn.functional.gaussian_nll_loss(x, y, y[:, :1].abs(), full=True, reduction="none")
            return loss, torch.fft.fftfreq(x.shape[1], 0.5), torch.fft.rfftfreq(x.shape[1])

    example = torch.randn(3, 5), torch.randn(3, 5)
    compared(Module(), mlxport.port(Module().eval(), example), (torch.randn(2, 5), torch.randn(2, 5)))


def test_rows_in_order_stay_in_order_at_other_sizes():
    class Bins(nn.Module):
        def forward(self, edges, x):
            return torch.searchsorted(edges, x)

    example = torch.randn(3, 6).sort(-1).values, torch.randn(3, 4)
    compared(Bins(), mlxport.port(Bins().eval(), example), example)


def test_a_spectrogram_and_back():
    class There(nn.Module):
        def forward(self, x):
            made = torch.stft(x, 16, 4, window=torch.hann_window(16), return_complex=True)
            return torch.istft(made, 16, 4, window=torch.hann_window(16)), torch.fft.fftshift(x), torch.fft.hfft(x)

    compared(There(), mlxport.port(There().eval(), (torch.randn(2, 64),)), (torch.randn(2, 64),))
