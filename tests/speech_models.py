"""Tiny random models that hear and write, as transformers saves them, with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from checkpoints import write_tokenizer

VOCABULARY = 320


def make_whisper() -> Any:
    """A seeded Whisper whose tokens differ."""
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=12, max_source_positions=20,
        max_target_positions=64, decoder_start_token_id=2, pad_token_id=1, eos_token_id=3, bos_token_id=0,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(7)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in filter(lambda item: item.requires_grad, model.parameters()):
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.ndim > 1 else 0.1))
    return model


def save_whisper(folder: Path) -> Any:
    """Save such a model with a tokenizer; gives it."""
    model = make_whisper()
    model.save_pretrained(folder)
    write_tokenizer(folder, VOCABULARY)
    return model


def written_of(model: Any, features: torch.Tensor, count: int, **settings: Any) -> list[int]:
    """What transformers' greedy search writes of features, the first token left out; Whisper's own way of it apart."""
    with torch.no_grad():
        made = transformers.GenerationMixin.generate(
            model, features, max_new_tokens=count, do_sample=False, num_beams=1, **settings
        )
    return made[0, 1:].tolist()
