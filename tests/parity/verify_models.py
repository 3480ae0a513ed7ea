"""Tiny seeded models as checkpoints on disk, converted by mlx-lm's own functions."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import torch
import transformers

from mlxport.transform import invert, trace
from mlxport.types import Checkpoint, TensorRef

SMALL = dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=320,
    intermediate_size=128, max_position_embeddings=512,
)  # fmt: skip
THETA = dict(rope_parameters={"rope_type": "default", "rope_theta": 500000.0})

CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL, **THETA),
    "llama_tied": lambda: transformers.LlamaConfig(**SMALL, **THETA, tie_word_embeddings=True),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, **THETA),
    "gemma": lambda: transformers.GemmaConfig(**SMALL, head_dim=16),
    "gpt2": lambda: transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=320, n_positions=256),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **SMALL, **THETA, moe_intermediate_size=64, shared_expert_intermediate_size=64, num_experts=4,
        num_experts_per_tok=2,
    ),
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, **THETA, num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **{**SMALL, "num_key_value_heads": 4}, **THETA, moe_intermediate_size=64, n_routed_experts=4, n_group=1,
        topk_group=1, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=24,
        kv_lora_rank=32, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16,
    ),
    "starcoder2": lambda: transformers.Starcoder2Config(**SMALL, **THETA, sliding_window=9),
}  # fmt: skip
AGREEING = [name for name in CONFIGS if name != "starcoder2"]


def refs_of(folder: Path) -> dict[str, TensorRef]:
    """References read from safetensors headers, without the package's own reader."""
    refs = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            refs[name] = TensorRef(
                name, entry["dtype"], tuple(entry["shape"]), path, 8 + size + entry["data_offsets"][0]
            )
    return refs


def checkpoint_of(folder: Path) -> Checkpoint:
    config = json.loads((folder / "config.json").read_text())
    refs = refs_of(folder)
    return Checkpoint(folder, config, refs, tuple(sorted({ref.path for ref in refs.values()})))


def save_source(name: str, folder: Path, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> Checkpoint:
    """A random model with weights large enough for its attention and its norms to matter."""
    torch.manual_seed(sum(name.encode()))
    config = CONFIGS[name]()
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "embed" not in key and "wte" not in key:
                parameter.mul_(scale)
    # The classic GPT-2 checkpoints hold the bare transformer: keys without the prefix of the model that generates.
    (model.to(dtype).transformer if name == "gpt2" else model.to(dtype)).save_pretrained(folder)
    return checkpoint_of(folder)


def to_fp8(checkpoint: Checkpoint, folder: Path, block: int = 48) -> Checkpoint:
    """The same checkpoint with its projections in e4m3, one scale a block."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint.root, folder)
    tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = value
            continue
        rows, columns = (-(-size // block) for size in value.shape)
        scales = 0.5 + torch.rand(rows, columns)
        spread = scales.repeat_interleave(block, 0).repeat_interleave(block, 1)
        tensors[name] = (value / spread[: value.shape[0], : value.shape[1]]).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [block, block]})
    return checkpoint_of(folder)


def dequantized(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """An fp8 checkpoint as mlx-lm's sanitize reads it: written out by plain arithmetic, without the package's."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint.root, folder)
    block = checkpoint.config["quantization_config"]["weight_block_size"][0]
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        weight, scales = tensors[name.removesuffix("_scale_inv")], tensors.pop(name)
        spread = scales.repeat_interleave(block, 0).repeat_interleave(block, 1)
        value = weight.to(torch.float32) * spread[: weight.shape[0], : weight.shape[1]]
        tensors[name.removesuffix("_scale_inv")] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {k: v for k, v in checkpoint.config.items() if k != "quantization_config"}
    (folder / "config.json").write_text(json.dumps(config))
    return checkpoint_of(folder)


def old_style(config: dict) -> dict:
    """Rope settings at the root, where mlx-lm reads them."""
    config = dict(config)
    rope = config.pop("rope_parameters", None) or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    if config["model_type"] == "gpt2":
        config["n_ctx"] = config["n_positions"]
    return config


def convert(checkpoint: Checkpoint, folder: Path, *, dtype=None, quantize: dict | None = None) -> SimpleNamespace:
    """Write ``folder`` with mlx-lm's functions; the invert function goes with it."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    staged = folder.with_name(folder.name + ".staged")
    shutil.copytree(checkpoint.root, staged)
    (staged / "config.json").write_text(json.dumps(old_style(dict(checkpoint.config))))
    model, config = load_model(staged, lazy=True)
    program = trace(getattr(model, "sanitize", dict), checkpoint.tensors)
    if dtype is not None:
        model.set_dtype(dtype)
    if quantize:
        mode = quantize.get("mode", "affine")
        model, config = quantize_model(model, config, quantize["group_size"], quantize["bits"], mode=mode)
    folder.mkdir(parents=True)
    save_model(folder, model, donate_model=False)
    save_config(config, folder / "config.json")
    shutil.rmtree(staged)
    return SimpleNamespace(folder=folder, checkpoint=checkpoint, invert=functools.partial(invert, program))


def edit_weights(folder: Path, change) -> None:
    """Apply ``change`` to the dict of stored arrays and write them back."""
    path = folder / "model.safetensors"
    weights = dict(mx.load(str(path)))
    mx.eval(weights)
    change(weights)
    mx.save_safetensors(str(path), weights, metadata={"format": "mlx"})


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
