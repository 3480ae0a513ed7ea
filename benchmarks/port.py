"""Emitted code beside hand-written MLX, and beside torch eager: MLX primitives of a forward, and its time.

python benchmarks/port.py [--models llama bert vit resnet] [--repeat 15] [--output docs/port-speed.md]

Each pair has equal random weights and runs in turn within one process, so that both see the same machine. The Llama by
hand is mlx-lm's; BERT, ViT and ResNet are written below as a user of mlx.nn would write them.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import torch
from mlx.utils import tree_flatten

import mlxport


class Pair(NamedTuple):
    """One model both ways.

    Attributes:
        original: The torch module.
        inputs: Its keyword inputs.
        by_hand: The same in MLX, called with the inputs' arrays in order; gives the first output.
    """

    original: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    by_hand: Callable[..., mx.array]


def weights_of(module: torch.nn.Module) -> dict[str, mx.array]:
    """The state of a torch module as MLX arrays, convolutions in MLX layout."""
    arrays = {name: mx.array(tensor.numpy()) for name, tensor in module.state_dict().items()}
    return {name: a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for name, a in arrays.items()}


def llama() -> Pair:
    """A Llama of 60 M parameters against mlx-lm's."""
    from mlx_lm.models.llama import Model, ModelArgs
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8192, hidden_size=640, intermediate_size=1728, num_hidden_layers=10, num_attention_heads=10,
        num_key_value_heads=5, max_position_embeddings=1024, use_cache=False,
    )  # fmt: skip
    original = LlamaForCausalLM(config).eval()
    args = ModelArgs.from_dict({**config.to_dict(), "rope_theta": 10000.0})
    model = Model(args)
    model.load_weights(list(weights_of(original).items()))
    ids = torch.randint(0, 8192, (1, 256))
    return Pair(original, {"input_ids": ids}, lambda input_ids: model(input_ids))


class BertSelf(nn.Module):
    """One BERT layer by hand."""

    def __init__(self, dims: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dims, dims) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(dims, eps=1e-12), nn.LayerNorm(dims, eps=1e-12)
        self.up, self.down = nn.Linear(dims, hidden), nn.Linear(hidden, dims)

    def attend(self, x: mx.array, mask: mx.array | None) -> mx.array:
        """Multi-head attention."""
        batch, length, dims = x.shape
        q, k, v = (
            layer(x).reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3)
            for layer in (self.query, self.key, self.value)
        )
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=(dims // self.heads) ** -0.5, mask=mask)
        return self.out(out.transpose(0, 2, 1, 3).reshape(batch, length, dims))

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        """After-norm layer."""
        x = self.norm1(x + self.attend(x, mask))
        return self.norm2(x + self.down(nn.gelu(self.up(x))))


class BertByHand(nn.Module):
    """BERT by hand."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        dims = config.hidden_size
        self.words = nn.Embedding(config.vocab_size, dims)
        self.positions = nn.Embedding(config.max_position_embeddings, dims)
        self.types = nn.Embedding(2, dims)
        self.norm = nn.LayerNorm(dims, eps=1e-12)
        self.layers = [
            BertSelf(dims, config.num_attention_heads, config.intermediate_size)
            for _ in range(config.num_hidden_layers)
        ]

    def __call__(self, input_ids: mx.array, token_type_ids: mx.array) -> mx.array:
        """Hidden states of the last layer."""
        x = self.words(input_ids) + self.types(token_type_ids) + self.positions(mx.arange(input_ids.shape[1]))
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, None)
        return x


_BERT = {
    "embeddings.word_embeddings": "words", "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "types", "embeddings.LayerNorm": "norm", "encoder.layer": "layers",
    "attention.self.": "", "attention.output.dense": "out", "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "up", "output.dense": "down", "output.LayerNorm": "norm2",
}  # fmt: skip


def renamed(weights: dict[str, mx.array], rules: dict[str, str]) -> list[tuple[str, mx.array]]:
    """Weights under other names."""
    result = []
    for name, array in weights.items():
        for old, new in rules.items():
            name = name.replace(old, new)
        result.append((name, array))
    return result


def bert() -> Pair:
    """A BERT of 40 M parameters."""
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=512, num_hidden_layers=8, num_attention_heads=8, intermediate_size=2048)
    original = BertModel(config, add_pooling_layer=False).eval()
    model = BertByHand(config)
    model.load_weights(renamed(weights_of(original), _BERT), strict=False)
    ids = torch.randint(0, config.vocab_size, (4, 128))
    return Pair(original, {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}, model)


class VitLayer(BertSelf):
    """One ViT layer by hand."""

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        """Before-norm layer."""
        x = x + self.attend(self.norm1(x), mask)
        return x + self.down(nn.gelu(self.up(self.norm2(x))))


class VitByHand(nn.Module):
    """ViT by hand."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        dims, patch = config.hidden_size, config.patch_size
        self.patches = nn.Conv2d(3, dims, patch, stride=patch)
        self.token = mx.zeros((1, 1, dims))
        self.positions = mx.zeros((1, (config.image_size // patch) ** 2 + 1, dims))
        self.layers = [
            VitLayer(dims, config.num_attention_heads, config.intermediate_size)
            for _ in range(config.num_hidden_layers)
        ]
        self.norm = nn.LayerNorm(dims, eps=1e-12)

    def __call__(self, pixels: mx.array) -> mx.array:
        """Hidden states after the last norm."""
        x = self.patches(pixels.transpose(0, 2, 3, 1)).flatten(1, 2)
        token = mx.broadcast_to(self.token, (len(x), 1, x.shape[-1]))
        x = mx.concatenate([token, x], axis=1) + self.positions
        for layer in self.layers:
            x = layer(x, None)
        return self.norm(x)


_VIT = {
    "embeddings.patch_embeddings.projection": "patches", "embeddings.cls_token": "token",
    "embeddings.position_embeddings": "positions", "encoder.layer": "layers", "attention.attention.": "",
    "attention.output.dense": "out", "attention.q_proj": "query", "attention.k_proj": "key",
    "attention.v_proj": "value", "attention.o_proj": "out", "layernorm_before": "norm1", "layernorm_after": "norm2",
    "intermediate.dense": "up", "output.dense": "down", "mlp.fc1": "up", "mlp.fc2": "down", "layernorm": "norm",
}  # fmt: skip


def vit() -> Pair:
    """A ViT of 22 M parameters on 224 × 224."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
    original = ViTModel(config, add_pooling_layer=False).eval()
    model = VitByHand(config)
    model.load_weights(renamed(weights_of(original), _VIT), strict=False)
    return Pair(original, {"pixel_values": torch.randn(1, 3, 224, 224)}, model)


class Block(nn.Module):
    """A basic block of ResNet by hand."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm(outputs)
        if stride > 1:
            self.conv3 = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.bn3 = nn.BatchNorm(outputs)

    def __call__(self, x: mx.array) -> mx.array:
        """Two convolutions and a residual."""
        y = self.bn2(self.conv2(nn.relu(self.bn1(self.conv1(x)))))
        return nn.relu(y + (self.bn3(self.conv3(x)) if "conv3" in self else x))


class ResnetByHand(nn.Module):
    """ResNet-34 by hand."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm(64)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.blocks = []
        inputs = 64
        for index, (outputs, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
            for layer in range(depth):
                self.blocks.append(Block(inputs, outputs, 2 if layer == 0 and index else 1))
                inputs = outputs
        self.head = nn.Linear(inputs, config.num_labels)

    def __call__(self, pixels: mx.array) -> mx.array:
        """Logits."""
        x = self.pool(nn.relu(self.bn(self.conv(pixels.transpose(0, 2, 3, 1)))))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=(1, 2)))


def resnet() -> Pair:
    """ResNet-34, 21 M parameters, on 224 × 224."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[3, 4, 6, 3], layer_type="basic", num_labels=100)
    original = ResNetForImageClassification(config).eval()
    model = ResnetByHand(config)
    weights, starts = [], [0, 3, 7, 13]
    for name, array in weights_of(original).items():
        if match := re.match(r"resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(.*)", name):
            rest = match[3]
            for old, new in (("layer.0.", "1."), ("layer.1.", "2."), ("shortcut.", "3.")):
                rest = rest.replace(old, new)
            number, kind, leaf = rest.split(".")
            kind = "conv" if kind == "convolution" else "bn"
            name = f"blocks.{starts[int(match[1])] + int(match[2])}.{kind}{number}.{leaf}"
        name = name.replace("resnet.embedder.embedder.convolution", "conv")
        name = name.replace("resnet.embedder.embedder.normalization", "bn").replace("classifier.1", "head")
        weights.append((name, array))
    model.load_weights(weights, strict=False)
    return Pair(original, {"pixel_values": torch.randn(1, 3, 224, 224)}, model.eval())


def primitives(function: Callable[[], mx.array]) -> int:
    """MLX primitives that one forward runs, counted in ``mx.export_to_dot``."""
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, function())
        return Path(file.name).read_text().count("shape=rectangle")


def first(output: Any) -> mx.array:
    """The first array of an output."""
    leaves = [leaf for _, leaf in tree_flatten(output)]
    return leaves[0]


def measured(pair: Pair, repeat: int) -> dict[str, float]:
    """Both sides in turn."""
    ported = mlxport.port(pair.original, (), pair.inputs, verify=False)
    arrays = {name: mx.array(tensor.numpy()) for name, tensor in pair.inputs.items()}
    sides: dict[str, Callable[[], Any]] = {
        "emitted": lambda: first(ported(**arrays)),
        "by hand": lambda: pair.by_hand(*arrays.values()),
    }
    difference = mx.abs(sides["emitted"]() - sides["by hand"]()).max()
    scale = mx.abs(sides["by hand"]()).max()
    times: dict[str, list[float]] = {name: [] for name in (*sides, "torch")}
    for round_ in range(repeat + 2):
        for name, run in sides.items():
            start = time.perf_counter()
            mx.eval(run())
            if round_ >= 2:
                times[name].append(time.perf_counter() - start)
        start = time.perf_counter()
        with torch.no_grad():
            pair.original(**pair.inputs)
        if round_ >= 2:
            times["torch"].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(times["emitted"], times["by hand"], strict=True)]
    return {
        "parameters": sum(p.numel() for p in pair.original.parameters()),
        "difference": float((difference / scale).item()),
        "emitted primitives": primitives(sides["emitted"]),
        "primitives by hand": primitives(sides["by hand"]),
        **{f"{name} ms": 1e3 * statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(ratios),
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models: dict[str, Callable[[], Pair]] = {"llama": llama, "bert": bert, "vit": vit, "resnet": resnet}
    parser.add_argument("--models", nargs="*", default=list(models), choices=list(models))
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--output", type=Path, help="write the table here")
    options = parser.parse_args()
    torch.manual_seed(0)
    head = (
        "| model | parameters | primitives: emitted / by hand | time: emitted / by hand | ratio | torch | difference |"
    )
    lines = [head, "|---|---|---|---|---|---|---|"]
    for name in options.models:
        row = measured(models[name](), options.repeat)
        lines.append(
            f"| {name} | {row['parameters'] / 1e6:.0f} M | {row['emitted primitives']:.0f} / "
            f"{row['primitives by hand']:.0f} | {row['emitted ms']:.1f} / {row['by hand ms']:.1f} ms | "
            f"{row['ratio']:.3f} | {row['torch ms']:.1f} ms | {row['difference']:.0e} |"
        )
        print(lines[-1], flush=True)
    if options.output:
        where = f"MLX {mx.__version__} on {mx.default_device()}, torch {torch.__version__} eager on the CPU"
        note = f"`python benchmarks/port.py --output docs/port-speed.md`. Median of {options.repeat} rounds; {where}."
        text = f"# Emitted code beside hand-written MLX\n\n{note}\n\n"
        options.output.write_text(text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
