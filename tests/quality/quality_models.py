"""Tiny random models of several architectures as transformers saves them, with a tokenizer of bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
import transformers

from checkpoints import VOCABULARY, write_tokenizer

SMALL: dict[str, Any] = dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=VOCABULARY,
    intermediate_size=128, max_position_embeddings=256, head_dim=16,
)  # fmt: skip
THETA: dict[str, Any] = dict(rope_parameters={"rope_type": "default", "rope_theta": 50000.0})

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL, **THETA),
    "llama_tied": lambda: transformers.LlamaConfig(**SMALL, **THETA, tie_word_embeddings=True),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, **THETA),
    "gpt2": lambda: transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=256),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SMALL, sliding_window=32, query_pre_attn_scalar=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SMALL, **THETA, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **{**SMALL, "num_key_value_heads": 4, "head_dim": 16}, **THETA, moe_intermediate_size=64, n_routed_experts=4,
        n_group=1, topk_group=1, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=64,
        kv_lora_rank=64, qk_rope_head_dim=16, qk_nope_head_dim=32, v_head_dim=32,
    ),
}  # fmt: skip


def save_source(name: str, folder: Path, tokenizer: bool = True) -> Path:
    """A seeded model whose weights are large enough for its predictions to differ between tokens."""
    torch.manual_seed(sum(name.encode()))
    config = CONFIGS[name]()
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, None
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "embed" not in key and "wte" not in key:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    if tokenizer:
        write_tokenizer(folder)
    return folder


def unpacked(words: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int) -> np.ndarray:
    """MLX's affine format by plain arithmetic, float64, for bits that divide 32."""
    codes = (words[..., None] >> np.arange(0, 32, bits, dtype=np.uint32)) & ((1 << bits) - 1)
    codes = codes.reshape(*scales.shape, -1).astype(np.float64)
    return (codes * scales[..., None] + biases[..., None]).reshape(*words.shape[:-1], -1)


def stored(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of an output in the affine format, dequantized by hand, float64."""
    settings = json.loads((folder / "config.json").read_text()).get("quantization", {})
    arrays = {}
    for path in folder.glob("*.safetensors"):
        arrays.update(mx.load(str(path)))
    found = {}
    for name, array in arrays.items():
        base, _, part = name.rpartition(".")
        if part in ("scales", "biases"):
            continue
        if part == "weight" and f"{base}.scales" in arrays:
            scales, biases = (
                np.array(arrays[f"{base}.{p}"].astype(mx.float32), np.float64) for p in ("scales", "biases")
            )
            found[name] = unpacked(np.array(array), scales, biases, settings.get(base, settings)["bits"])
        else:
            found[name] = np.array(array.astype(mx.float32), np.float64)
    return found


def torch_logits(folder: Path, ids: np.ndarray, weights: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """Logits of transformers' model in float64, with other weights where they are given."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    if weights:
        state = model.state_dict()
        assert set(weights) <= set(state), set(weights) - set(state)
        model.load_state_dict({**state, **{name: torch.from_numpy(value) for name, value in weights.items()}})
    with torch.no_grad():
        return model.eval()(torch.from_numpy(ids)[None]).logits[0].numpy()


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
