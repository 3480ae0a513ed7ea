"""OpenCLIP's model as published, in plain torch, and tiny folders of it as OpenCLIP lays them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from task_models import randomised, word_tokenizer
from torch import nn

PICTURES = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25], "interpolation": "bicubic", "resize_mode": "shortest"}


def open_clip_config(vocabulary: int = 40, **fields: Any) -> dict[str, Any]:
    """``model_cfg`` of a tiny model."""
    eyes = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8}
    words = {"context_length": 20, "vocab_size": vocabulary, "width": 24, "heads": 4, "layers": 2}
    vision, text = ({**usual, **fields.pop(name, {})} for name, usual in (("vision_cfg", eyes), ("text_cfg", words)))
    return {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, **fields}


class QuickGELU(nn.Module):
    """The sigmoid that stands for gelu."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[...] to [...]."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A residual attention block."""

    def __init__(self, width: int, heads: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", activation())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[rows, length, width]; ``mask`` is added to the scores."""
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    """Residual attention blocks."""

    def __init__(self, layers: int, width: int, heads: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, activation) for _ in range(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """One after the other."""
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    """The tower that reads pictures."""

    def __init__(self, given: dict[str, Any], out: int, activation: type[nn.Module]) -> None:
        super().__init__()
        width, patch = given["width"], given["patch_size"]
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((given["image_size"] // patch) ** 2 + 1, width))
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Blocks(given["layers"], width, width // given["head_width"], activation)
        self.proj = nn.Parameter(torch.randn(width, out))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[pictures, 3, height, width] to [pictures, out]."""
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """Both towers, as ``model_cfg`` says."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        activation, text = QuickGELU if given.get("quick_gelu") else nn.GELU, given["text_cfg"]
        self.visual = Visual(given["vision_cfg"], given["embed_dim"], activation)
        self.transformer = Blocks(text["layers"], text["width"], text["heads"], activation)
        self.token_embedding = nn.Embedding(text["vocab_size"], text["width"])
        self.positional_embedding = nn.Parameter(torch.randn(text["context_length"], text["width"]))
        self.ln_final = nn.LayerNorm(text["width"])
        self.text_projection = nn.Parameter(torch.randn(text["width"], given["embed_dim"]))
        self.logit_scale = nn.Parameter(torch.tensor(1.5))

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        """[texts, length] to [texts, out]: of the state at the highest id."""
        mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
        x = self.transformer(self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]], mask)
        return self.ln_final(x)[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection


def open_clip_folder(folder: Path, *, binary: bool = False, inside: str = "", **fields: Any) -> OpenClip:
    """A folder of OpenCLIP and its model; ``inside`` is put before the names of the text tower."""
    folder.mkdir()
    given = open_clip_config(word_tokenizer(folder, 20), **fields)
    torch.manual_seed(0)
    model = OpenClip(given)
    randomised(model)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": given, "preprocess_cfg": PICTURES}))
    outer = ("visual.", "logit_scale")
    state = {name if name.startswith(outer) else inside + name: item for name, item in model.state_dict().items()}
    if binary:
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(state, folder / "open_clip_model.safetensors")
    return model
