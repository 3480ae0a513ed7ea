"""A vocoder as researchers write them, and factories for ``mlxport port``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class Snake(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.rand(1, channels, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).pow(2)


class ResidualUnit(nn.Module):
    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.snake = Snake(channels)
        self.pad = nn.ReflectionPad1d(3 * dilation)
        self.conv = weight_norm(nn.Conv1d(channels, channels, 7, dilation=dilation, groups=channels // 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.pad(self.snake(x)))


class Vocoder(nn.Module):
    def __init__(self, mels: int = 8, channels: int = 32):
        super().__init__()
        self.conv_pre = weight_norm(nn.Conv1d(mels, channels, 7, padding=3))
        self.upsample = weight_norm(nn.ConvTranspose1d(channels, channels // 2, 8, stride=4, padding=2, groups=4))
        self.units = nn.ModuleList([ResidualUnit(channels // 2, dilation) for dilation in (1, 3)])
        self.norm = nn.BatchNorm1d(channels // 2)
        self.conv_post = nn.Conv1d(channels // 2, 1, 7, padding=3)

    def forward(self, mel: Tensor, gain: float = 1.0) -> dict[str, Tensor]:
        x = self.upsample(self.conv_pre(mel))
        for unit in self.units:
            x = unit(x)
        audio = torch.tanh(self.conv_post(self.norm(x))) * gain
        return {"audio": audio.squeeze(1), "features": x}


def make() -> tuple[nn.Module, dict[str, Tensor | float]]:
    torch.manual_seed(0)
    return Vocoder().eval(), {"mel": torch.randn(2, 8, 12), "gain": 1.0}


def dense() -> tuple[nn.Module, tuple[Tensor]]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32)).eval(), (torch.randn(3, 64),)


def module_alone() -> nn.Module:
    return Vocoder()


def broken() -> None:
    raise RuntimeError("no such checkpoint")


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def branches() -> tuple[nn.Module, tuple[Tensor]]:
    return Branches(), (torch.randn(3),)


@torch.library.custom_op("vocoder::mystery", mutates_args=())
def mystery(x: Tensor) -> Tensor:
    return x * 2


@mystery.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return mystery(x) + mystery(2 * x)


def unknown() -> tuple[nn.Module, tuple[Tensor]]:
    return Unknown(), (torch.randn(3),)


def misfit() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Vocoder(), (torch.randn(2, 8, 12), torch.ones(1), torch.ones(1))
