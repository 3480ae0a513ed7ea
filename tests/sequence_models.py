"""Tiny random models of an encoder and a decoder, as transformers saves them, with a tokenizer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from checkpoints import write_tokenizer

VOCABULARY = 320
_COMMON: dict[str, Any] = dict(vocab_size=VOCABULARY, decoder_start_token_id=2, pad_token_id=1, eos_token_id=3)
BART: dict[str, Any] = dict(
    d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=96,
)  # fmt: skip
T5: dict[str, Any] = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                           relative_attention_num_buckets=8, relative_attention_max_distance=24)  # fmt: skip

# Each stands for a way to tell positions: a learned table, distances, sinusoids by place, counts of what is no padding.
CONFIGS = {
    "bart": partial(transformers.BartConfig, **_COMMON, **BART),
    "t5": partial(transformers.T5Config, **_COMMON, **T5),
    "umt5": partial(transformers.UMT5Config, **_COMMON, **T5, feed_forward_proj="gated-gelu"),
    "marian": partial(transformers.MarianConfig, **_COMMON, **BART),
    "m2m_100": partial(transformers.M2M100Config, **_COMMON, **BART),
}


def make_sequence_model(name: str, noise: float = 0.2) -> Any:
    """A seeded model whose tokens differ, of one of the configs above."""
    return randomised(CONFIGS[name](), noise)


def randomised(config: Any, noise: float = 0.2) -> Any:
    """A seeded model whose tokens differ: no zeros, no ones, larger weights than a model begins with."""
    torch.manual_seed(7)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in filter(lambda item: item.requires_grad, model.parameters()):  # not what is never stored
            parameter.add_(torch.randn_like(parameter) * (noise if parameter.ndim > 1 else 0.1))
    return model


def save_sequence_model(name: str, folder: Path, **settings: Any) -> Any:
    """Save such a model with a tokenizer and settings of generation; gives it."""
    model = make_sequence_model(name)
    model.generation_config.update(**{"forced_eos_token_id": None, **settings})
    model.save_pretrained(folder)
    write_tokenizer(folder, VOCABULARY)
    return model


def written(model: Any, source: list[int], count: int, **settings: Any) -> list[int]:
    """What transformers' greedy (or beam) search writes of a text that it reads, the first token left out."""
    ids = torch.tensor([source])
    settings = {"max_new_tokens": count, "do_sample": False, "num_beams": 1, **settings}
    with torch.no_grad():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return made[0, 1:].tolist()
