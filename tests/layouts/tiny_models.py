"""Tiny random models as transformers saves them, and mlx-lm's own conversion of the same folder."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import torch
import transformers

from mlxport.layouts.conversion import Conversion
from mlxport.layouts.mlx_lm.normalize import normalize_config
from mlxport.layouts.mlx_lm.opening import open_model
from mlxport.output.plan import make_shards
from mlxport.output.shards import write_shard
from mlxport.quant import QuantRequest
from mlxport.source import open_checkpoint
from mlxport.types import Checkpoint

SIZES: dict[str, Any] = dict(
    vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128,
)  # fmt: skip
ROPE: dict[str, Any] = dict(rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
MLA: dict[str, Any] = dict(
    kv_lora_rank=32, q_lora_rank=64, qk_rope_head_dim=16, v_head_dim=32, qk_nope_head_dim=32, n_routed_experts=4,
    n_shared_experts=1, n_group=1, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=64,
    first_k_dense_replace=1,
)  # fmt: skip
EXPERTS: dict[str, Any] = dict(moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2)

CONFIGS = {
    "llama": partial(transformers.LlamaConfig, **SIZES, **ROPE),
    "llama_tied": partial(transformers.LlamaConfig, **SIZES, **ROPE, tie_word_embeddings=True),
    "qwen2": partial(transformers.Qwen2Config, **SIZES, **ROPE),
    "qwen2_moe": partial(transformers.Qwen2MoeConfig, **SIZES, **ROPE, **EXPERTS, shared_expert_intermediate_size=64),
    "qwen3_moe": partial(transformers.Qwen3MoeConfig, **SIZES, **ROPE, **EXPERTS, head_dim=16),
    "mixtral": partial(transformers.MixtralConfig, **SIZES, **ROPE, num_local_experts=4, num_experts_per_tok=2),
    "granitemoe": partial(transformers.GraniteMoeConfig, **SIZES, **ROPE, num_local_experts=4, num_experts_per_tok=2),
    "gemma": partial(transformers.GemmaConfig, **SIZES, **ROPE, head_dim=16),
    "gemma2": partial(transformers.Gemma2Config, **SIZES, **ROPE, head_dim=16, sliding_window=128),
    "phi3": partial(transformers.Phi3Config, **SIZES, **ROPE, sliding_window=None, pad_token_id=0),
    "olmoe": partial(transformers.OlmoeConfig, **SIZES, **ROPE, num_experts=4, num_experts_per_tok=2),
    "deepseek_v3": partial(transformers.DeepseekV3Config, **{**SIZES, "num_key_value_heads": 4}, **ROPE, **MLA),
    "gpt_neox": partial(transformers.GPTNeoXConfig, vocab_size=96, hidden_size=64, intermediate_size=256,
                        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128),
    "cohere": partial(transformers.CohereConfig, **SIZES, **ROPE, pad_token_id=0),
}  # fmt: skip


def save_model(architecture: str, folder: Path, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    """A seeded random model, its norms and biases away from one and zero, with a tokenizer and an old-style config."""
    torch.manual_seed(7)
    config = CONFIGS[architecture](**changes)
    config.bos_token_id = config.eos_token_id = None
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(dtype).save_pretrained(folder, max_shard_size="150KB")
    save_tokenizer(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    # mlx-lm itself reads some configs of transformers 5 wrongly or not at all; tensors are what is compared here.
    path.write_text(json.dumps(normalize_config(config).config))
    return folder


def save_tokenizer(folder: Path) -> None:
    """A tokenizer that mlx-lm can load: it refuses to convert without one."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    fast.save_pretrained(folder)


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def copy_with(source: Path, folder: Path, weights: dict[str, mx.array], **config: Any) -> Path:
    """The same model with other tensors in one file, and changes to the config."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    edit_config(folder, **config)
    return folder


def read_weights(folder: Path) -> dict[str, mx.array]:
    arrays: dict[str, mx.array] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        arrays.update(mx.load(str(path)))
    return arrays


def open_target(checkpoint: Checkpoint, *, quant: QuantRequest | None = None, **options: Any) -> Conversion:
    """The conversion of a checkpoint, quantized as asked."""
    return open_model(checkpoint, **options).conversion(quant)


def convert(source: Path, folder: Path, **options: Any) -> Conversion:
    """Open, write and describe, without anything else that a whole conversion does."""
    conversion = open_target(open_checkpoint(source), **options)
    folder.mkdir(parents=True)
    for shard in make_shards(conversion.tensors(), 200_000):
        write_shard(conversion.program, shard, folder / shard.filename, workers=2)
    (folder / "config.json").write_text(json.dumps(conversion.config, indent=4))
    return conversion


def convert_by_mlx_lm(source: Path, folder: Path, **options: Any) -> Path:
    from mlx_lm.convert import convert as mlx_lm_convert

    with contextlib.redirect_stdout(io.StringIO()):
        mlx_lm_convert(str(source), str(folder), **options)
    return folder


def assert_same_weights(got: dict[str, mx.array], want: dict[str, mx.array]) -> None:
    """Names, dtypes, shapes and bits."""
    assert set(got) == set(want)
    different = [
        name
        for name, array in want.items()
        if (got[name].dtype, got[name].shape) != (array.dtype, array.shape)
        or not mx.array_equal(got[name].reshape(-1).view(mx.uint8), array.reshape(-1).view(mx.uint8))
    ]
    assert not different


def load(folder: Path) -> Any:
    """The model as mlx-lm loads it, strictly."""
    from mlx_lm.utils import load_model

    return load_model(folder)[0]
