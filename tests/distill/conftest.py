"""Tiny checkpoints of several architectures, and their quantized outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from checkpoints import write_side_files

SIZES: dict[str, Any] = dict(
    vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=None,
)  # fmt: skip
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "tied": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "biases": lambda: transformers.Qwen2Config(**SIZES),
    "experts": lambda: transformers.Qwen3MoeConfig(
        **SIZES, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2, head_dim=16
    ),
    "windows": lambda: transformers.Gemma3TextConfig(
        **SIZES, head_dim=16, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "recurrent": lambda: transformers.MambaConfig(
        vocab_size=320,
        hidden_size=64,
        num_hidden_layers=2,
        state_size=8,
        bos_token_id=0,
        eos_token_id=1,
        max_position_embeddings=32,
    ),
    "positions": lambda: transformers.GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=320, n_positions=400),
    "encoder": lambda: transformers.T5Config(
        vocab_size=320,
        d_model=64,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=2,
    ),
    "odd sizes": lambda: transformers.LlamaConfig(**{**SIZES, "intermediate_size": 80}),
}


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model, large enough in its weights to predict something."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            cls = transformers.AutoModelForSeq2SeqLM if name == "encoder" else transformers.AutoModelForCausalLM
            model = cls.from_config(MODELS[name]()).to(torch.float32)
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if parameter.ndim > 1 and "A_log" not in key:
                        parameter.mul_({"recurrent": 2, "encoder": 1.5}.get(name, 8))
            folder = tmp_path_factory.mktemp("checkpoints") / name
            write_side_files(folder)
            model.to(torch.bfloat16).save_pretrained(folder)
            made[name] = folder
        return made[name]

    return make
