"""Tiny random language models that mlx-lm has no code for, as transformers saves them, with a tokenizer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from checkpoints import write_tokenizer

VOCABULARY = 320
_WIDTH: dict[str, Any] = dict(vocab_size=VOCABULARY, hidden_size=32)

# Each stands for a way to tell positions, or what attention sees.
CONFIGS = {
    "opt": partial(transformers.OPTConfig, **_WIDTH, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
                   max_position_embeddings=96, word_embed_proj_dim=32),
    "bloom": partial(transformers.BloomConfig, **_WIDTH, n_layer=2, n_head=4),
    "falcon": partial(transformers.FalconConfig, **_WIDTH, num_hidden_layers=2, num_attention_heads=4),
    "biogpt": partial(transformers.BioGptConfig, **_WIDTH, intermediate_size=48, num_hidden_layers=2,
                      num_attention_heads=4, max_position_embeddings=96),
}  # fmt: skip


def make_language_model(name: str, noise: float = 0.8, **changes: Any) -> Any:
    """A seeded model whose tokens differ: no zeros, no ones, larger weights than a model begins with."""
    torch.manual_seed(5)
    config = CONFIGS[name](**changes)
    config.bos_token_id = config.eos_token_id = None
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (noise if parameter.ndim > 1 else 0.1))
    return model


def save_language_model(name: str, folder: Path, noise: float = 0.8, **changes: Any) -> Any:
    """Save such a model with a tokenizer; gives it."""
    model = make_language_model(name, noise, **changes)
    model.save_pretrained(folder)
    write_tokenizer(folder, VOCABULARY)
    return model


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """What transformers writes after a prompt."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return made[0, len(prompt) :].tolist()
