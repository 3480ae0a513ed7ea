"""mlx-lm models of any size on placeholders, and real runs of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from command import environment

LLAMA: dict[str, Any] = dict(model_type="llama", rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False)
TINY: dict[str, Any] = dict(hidden_size=64, num_hidden_layers=2, intermediate_size=128, num_attention_heads=4,
                            num_key_value_heads=2, vocab_size=96)  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA, **TINY},
    "wide heads": {**LLAMA, **TINY, "head_dim": 64},
    "sliding window": {
        **TINY, "model_type": "gemma3_text", "head_dim": 16, "num_hidden_layers": 6, "rms_norm_eps": 1e-6,
        "sliding_window": 128, "sliding_window_pattern": 3, "query_pre_attn_scalar": 16,
        "max_position_embeddings": 16384,
    },
    "experts": {
        **TINY, "model_type": "qwen3_moe", "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 64, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "max_position_embeddings": 16384, "norm_topk_prob": True,
    },
    "latent cache": {
        **TINY, "model_type": "deepseek_v3", "num_key_value_heads": 4, "moe_intermediate_size": 64,
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "kv_lora_rank": 32, "q_lora_rank": 64,
        "qk_rope_head_dim": 16, "v_head_dim": 32, "qk_nope_head_dim": 32, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 16384,
        "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "rope_scaling": None,
        "attention_bias": False, "moe_layer_freq": 1, "routed_scaling_factor": 1.0,
    },
    "state space": {
        "model_type": "mamba2", "num_heads": 8, "head_dim": 16, "vocab_size": 96, "hidden_size": 64,
        "intermediate_size": 128, "state_size": 16, "num_hidden_layers": 2, "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4, "n_groups": 1, "use_bias": False, "use_conv_bias": True, "tie_word_embeddings": False,
        "time_step_limit": [0.0, 100.0], "time_step_rank": 4, "ssm_state_size": 16, "max_position_embeddings": 16384,
    },
    "100 M": {
        **LLAMA, "hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 2048, "num_attention_heads": 12,
        "num_key_value_heads": 4, "vocab_size": 32000,
    },
}  # fmt: skip


def build(name: str, dtype: mx.Dtype = mx.float32, **changes: Any) -> nn.Module:
    """The model; its parameters are lazy zeros."""
    from mlx_lm.utils import _get_classes

    config = {**CONFIGS[name], **changes}
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    model.load_weights([(path, mx.zeros(v.shape, dtype)) for path, v in tree_flatten(model.parameters())])
    return model


def nbytes(model: nn.Module) -> int:
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def save(name: str, folder: Path, dtype: mx.Dtype = mx.float32, bits: int | None = None) -> Path:
    """A folder with random weights, quantized or not, as mlx-lm loads it."""
    folder.mkdir()
    model, config = build(name, dtype), dict(CONFIGS[name])
    mx.random.seed(0)
    model.load_weights(
        [(path, (0.02 * mx.random.normal(v.shape)).astype(dtype)) for path, v in tree_flatten(model.parameters())]
    )
    if bits is not None:
        nn.quantize(model, group_size=64, bits=bits)
        config["quantization"] = {"group_size": 64, "bits": bits}
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def measured_peaks(folder: Path, runs: list[dict[str, Any]]) -> list[int]:
    """``mx.get_peak_memory`` of real runs, each ``generate_step`` on a prompt of ``context`` tokens."""
    script = Path(__file__).with_name("peak.py")
    command = [sys.executable, str(script), str(folder), json.dumps(runs)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert result.returncode == 0, result.stderr
    return [int(line) for line in result.stdout.split()]
