"""Peak memory and time of ``mlxport plan`` on a checkpoint of DeepSeek-V3's shape: 92,000 tensors, and no weights.

    python benchmarks/plan_tensors.py [--folder TMP] [--layers 61] [--experts 256]

Writes config, index and 163 shards whose headers are those of the published checkpoint and whose weights are holes
(689 GB that take some 14 MB of disk), plans for a Mac in a child process, and prints the child's peak resident memory
and wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_WIDTHS = {"F8_E4M3": 1, "BF16": 2, "F32": 4}
_BLOCK = 128
_SHARD_BYTES = 4_250_000_000

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [_BLOCK, _BLOCK],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 129280,
}

Tensor = tuple[str, str, tuple[int, ...]]


def tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    """Name, dtype and shape of every tensor of the published checkpoint."""
    hidden, rows = config["hidden_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", "BF16", (rows, hidden)
    layers = config["num_hidden_layers"]
    for layer in range(layers + config["num_nextn_predict_layers"]):
        prefix = f"model.layers.{layer}."
        yield from _attention(config, prefix)
        yield from _feed_forward(config, prefix, layer >= config["first_k_dense_replace"])
        if layer >= layers:  # what predicts a token more, with embeddings and a head of its own
            yield prefix + "embed_tokens.weight", "BF16", (rows, hidden)
            yield prefix + "enorm.weight", "BF16", (hidden,)
            yield prefix + "hnorm.weight", "BF16", (hidden,)
            yield from _blocks(prefix + "eh_proj", hidden, 2 * hidden, "BF16")
            yield prefix + "shared_head.norm.weight", "BF16", (hidden,)
            yield prefix + "shared_head.head.weight", "BF16", (rows, hidden)
    yield "model.norm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (rows, hidden)


def _blocks(path: str, rows: int, columns: int, dtype: str = "F8_E4M3") -> Iterator[Tensor]:
    yield f"{path}.weight", dtype, (rows, columns)
    if dtype == "F8_E4M3":
        yield f"{path}.weight_scale_inv", "F32", (-(-rows // _BLOCK), -(-columns // _BLOCK))


def _attention(config: dict[str, Any], prefix: str) -> Iterator[Tensor]:
    hidden, heads, ranks = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    rope, plain, value = config["qk_rope_head_dim"], config["qk_nope_head_dim"], config["v_head_dim"]
    path = prefix + "self_attn."
    yield from _blocks(path + "q_a_proj", config["q_lora_rank"], hidden)
    yield path + "q_a_layernorm.weight", "BF16", (config["q_lora_rank"],)
    yield from _blocks(path + "q_b_proj", heads * (plain + rope), config["q_lora_rank"])
    yield from _blocks(path + "kv_a_proj_with_mqa", ranks + rope, hidden)
    yield path + "kv_a_layernorm.weight", "BF16", (ranks,)
    yield from _blocks(path + "kv_b_proj", heads * (plain + value), ranks)
    yield from _blocks(path + "o_proj", hidden, heads * value)
    yield prefix + "input_layernorm.weight", "BF16", (hidden,)
    yield prefix + "post_attention_layernorm.weight", "BF16", (hidden,)


def _feed_forward(config: dict[str, Any], prefix: str, routed: bool) -> Iterator[Tensor]:
    hidden, experts, path = config["hidden_size"], config["n_routed_experts"], prefix + "mlp."
    if not routed:
        yield from _gated(path, hidden, config["intermediate_size"])
        return
    yield path + "gate.weight", "BF16", (experts, hidden)
    yield path + "gate.e_score_correction_bias", "F32", (experts,)
    for expert in range(experts):
        yield from _gated(f"{path}experts.{expert}.", hidden, config["moe_intermediate_size"])
    yield from _gated(path + "shared_experts.", hidden, config["moe_intermediate_size"] * config["n_shared_experts"])


def _gated(path: str, hidden: int, middle: int) -> Iterator[Tensor]:
    yield from _blocks(path + "gate_proj", middle, hidden)
    yield from _blocks(path + "up_proj", middle, hidden)
    yield from _blocks(path + "down_proj", hidden, middle)


def write_hollow(folder: Path, config: dict[str, Any], shard_bytes: int = _SHARD_BYTES) -> tuple[int, int, int]:
    """Write a checkpoint of ``tensors(config)`` whose weights are holes; return its tensors, shards and bytes."""
    shards: list[dict[str, Any]] = [{}]
    filled = total = 0
    for name, dtype, shape in tensors(config):
        size = _WIDTHS[dtype]
        for length in shape:
            size *= length
        if filled and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = {"dtype": dtype, "shape": shape, "data_offsets": [filled, filled + size]}
        filled, total = filled + size, total + size
    index = {}
    for number, header in enumerate(shards, 1):
        filename = f"model-{number:05}-of-{len(shards):06}.safetensors"
        text = json.dumps(header).encode()
        with (folder / filename).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + max(entry["data_offsets"][1] for entry in header.values()))
        index.update(dict.fromkeys(header, filename))
    (folder / "config.json").write_text(json.dumps(config))
    listed = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    return len(index), len(shards), total


def main() -> None:
    """Write the checkpoint, plan for it in a child, print what the child took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"])
    parser.add_argument("--experts", type=int, default=CONFIG["n_routed_experts"])
    arguments = parser.parse_args()
    config = {**CONFIG, "num_hidden_layers": arguments.layers, "n_routed_experts": arguments.experts}
    if arguments.layers != CONFIG["num_hidden_layers"]:
        config["num_nextn_predict_layers"] = 0  # mlx-lm drops that layer by its number, 61
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        count, shards, total = write_hollow(Path(folder), config)
        print(f"{count:,} tensors, {shards} shards, {total / 1e9:.0f} GB of holes")
        command = [sys.executable, "-m", "mlxport", "plan", folder, "--device", "M3 Ultra 512GB"]
        started = time.monotonic()
        subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{seconds:.1f} s, {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
