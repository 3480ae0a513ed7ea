"""Write examples/ports/*/model.py: what mlxport emits for a BERT, a ResNet and a vocoder.

python examples/make_ports.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

PORTS = Path(__file__).parent / "ports"


class Snake(nn.Module):
    """x + sin²(αx) / α, a periodic activation with one α a channel (arXiv:2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (1.0 / (self.alpha + 1e-9)) * torch.sin(self.alpha * x).pow(2)


class ResidualUnit(nn.Module):
    """A dilated, grouped convolution and a pointwise one around a residual."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.snake1 = Snake(channels)
        self.pad = nn.ReflectionPad1d(3 * dilation)
        self.conv1 = weight_norm(nn.Conv1d(channels, channels, 7, dilation=dilation, groups=channels // 16))
        self.snake2 = Snake(channels)
        self.conv2 = weight_norm(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(self.pad(self.snake1(x)))
        return x + self.conv2(self.snake2(hidden))


class DecoderBlock(nn.Module):
    """One upsampling stage of a vocoder."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.snake = Snake(in_channels)
        self.upsample = weight_norm(
            nn.ConvTranspose1d(in_channels, out_channels, 2 * stride, stride=stride, padding=stride // 2)
        )
        self.units = nn.ModuleList(ResidualUnit(out_channels, dilation) for dilation in (1, 3, 9))

    def forward(self, x: Tensor) -> Tensor:
        x = self.upsample(self.snake(x))
        for unit in self.units:
            x = unit(x)
        return x


def vocoder() -> tuple[nn.Module, tuple[Tensor]]:
    """A vocoder block: 64 channels at 1 step to 32 channels at 4."""
    return DecoderBlock(64, 32, 4).eval(), (torch.randn(2, 64, 20),)


def bert() -> tuple[nn.Module, dict[str, Tensor]]:
    """BERT-base of transformers."""
    from transformers import BertConfig, BertModel

    ids = torch.ones(2, 11, dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return BertModel(BertConfig()).eval(), inputs


def resnet() -> tuple[nn.Module, dict[str, Tensor]]:
    """ResNet-18 of transformers."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
    return ResNetForImageClassification(config).eval(), {"pixel_values": torch.zeros(2, 3, 64, 64)}


FACTORIES: dict[str, Callable[[], tuple[Any, Any]]] = {"bert": bert, "resnet": resnet, "vocoder": vocoder}


def emitted(name: str) -> str:
    """The source of one example, from weights that take no memory."""
    from mlxport.graph.build import build
    from mlxport.graph.capture.export import capture

    with torch.device("cpu"):
        module, inputs = FACTORIES[name]()
    args, kwargs = (inputs, {}) if isinstance(inputs, tuple) else ((), inputs)
    return build(capture(module, args, kwargs), model_type=name).source


def main() -> None:
    """Write them all."""
    for name in FACTORIES:
        (PORTS / name).mkdir(parents=True, exist_ok=True)
        (PORTS / name / "model.py").write_text(emitted(name), encoding="utf-8")
        print(PORTS / name / "model.py")


if __name__ == "__main__":
    main()
