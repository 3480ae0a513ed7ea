"""Tiny models of several kinds whose outputs depend on every weight, as Hugging Face folders that mlx-lm can read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from models import CONFIGS

from checkpoints import VOCABULARY, write_tokenizer

KINDS: dict[str, dict[str, Any]] = {
    "llama": CONFIGS["llama"],
    "tied": {**CONFIGS["llama"], "tie_word_embeddings": True},
    "odd sizes": {**CONFIGS["llama"], "intermediate_size": 172, "num_hidden_layers": 3},  # no group size divides 172
    "biases": {
        "model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "max_position_embeddings": 512,
    },
    "positions that all sequences share": {
        "model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_ctx": 128,
        "layer_norm_epsilon": 1e-5,
    },
    "sliding window": {
        **CONFIGS["sliding window"], "num_hidden_layers": 2, "sliding_window_pattern": 2, "sliding_window": 16,
    },
    "experts": CONFIGS["experts"],
    "latent cache": CONFIGS["latent cache"],
    "state space": CONFIGS["state space"],
}  # fmt: skip


def save(kind: str, folder: Path, dtype: mx.Dtype = mx.bfloat16, **changes: Any) -> Path:
    """A folder with seeded random weights."""
    from mlx_lm.utils import _get_classes

    config = {**KINDS[kind], "vocab_size": VOCABULARY, "eos_token_id": 1, **changes}
    model_class, args_class = _get_classes(config)
    key, arrays = mx.random.key(0), {}
    for name, array in tree_flatten(model_class(args_class.from_dict(config)).parameters()):
        key, own = mx.random.split(key)
        noise = mx.random.normal(array.shape, key=own)
        wide = array.ndim > 1
        arrays[name] = (noise * 1.5 / math.sqrt(array.shape[-1]) if wide else 1 + 0.1 * noise).astype(dtype)
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder
