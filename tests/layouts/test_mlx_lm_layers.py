"""What depends on the order and the kinds of layers, and on yarn's scales: parity with transformers, or the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_configs import YARN, assert_parity, new_style

from mlxport.layouts.mlx_lm.normalize import ConfigRefused, normalize_config
from mlxport.layouts.mlx_lm.rope_settings import yarn_rounding

LETTERS = {
    "f": "full_attention",
    "s": "sliding_attention",
    "l": "linear_attention",
    "c": "conv",
    "k": "chunked_attention",
    "m": "moe",
}
MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
QWEN3_NEXT: dict[str, Any] = {
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,  # its kernel takes multiples of 32
    "linear_value_head_dim": 32,
}


def layered(model_type: str, letters: str, **fields: Any) -> dict[str, Any]:
    """A config with one layer a letter."""
    kinds = [LETTERS[letter] for letter in letters]
    return new_style(model_type, layer_types=kinds, **{"num_hidden_layers": len(kinds), **fields})


def windowed(model_type: str, letters: str, **fields: Any) -> dict[str, Any]:
    return layered(model_type, letters, sliding_window=8, pad_token_id=0, head_dim=8, **fields)


def gemma3(letters: str, theta: float = 700.0, window: int = 8) -> dict[str, Any]:
    """Layers with full attention have a theta of their own."""
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": theta},
        "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
    }
    # mlx-lm rounds the root of hidden_size to bfloat16: 8 is exact
    sizes = {"hidden_size": 64, "query_pre_attn_scalar": 8}
    return {**windowed("gemma3_text", letters, **sizes), "rope_parameters": rope, "sliding_window": window}


REPEATED = [
    windowed("cohere2", "sfsf"),
    windowed("cohere2", "ssfs"),
    windowed("cohere2", "ff"),
    gemma3("sfsf"),
    gemma3("ff"),
    layered("qwen3_next", "lflf", **QWEN3_NEXT),
]


@pytest.mark.parametrize("config", REPEATED, ids=lambda c: f"{c['model_type']}-{len(c['layer_types'])}")
def test_layers_that_repeat_equal_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    assert_parity(config, tmp_path)


SCALES = [
    {"mscale_all_dim": 0.7},
    {"mscale_all_dim": 0.7, "mscale": 0.5},
    {"mscale_all_dim": 1.0, "mscale": 1.0, "attention_factor": 1.2},
]


@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("model_type", ["llama", "deepseek_v2", "deepseek_v3"])
def test_scales_of_yarn_equal_transformers(model_type: str, scales: dict[str, float], tmp_path: Path) -> None:
    fields = {} if model_type == "llama" else MLA
    assert_parity(new_style(model_type, {**YARN, **scales}, **fields), tmp_path)


@pytest.mark.parametrize("letters", ["s", "ss", "sss"])
def test_fewer_layers_than_the_pattern_has_equal_transformers_within_the_window(letters: str, tmp_path: Path) -> None:
    config = gemma3(letters, theta=90000.0, window=20)
    done = normalize_config(config)
    assert done.exact_tokens == 20 and "in the last layer" in done.warnings[0]
    assert normalize_config(done.config).exact_tokens == 20
    assert_parity(config, tmp_path)  # of 20 tokens
    with pytest.raises(AssertionError, match="Not equal"):
        assert_parity({**config, "sliding_window": 8}, tmp_path / "beyond")


def test_a_cap_that_the_file_omits_is_not_mlx_lms() -> None:
    config = normalize_config(new_style("gemma4_text", pad_token_id=0)).config
    assert config["final_logit_softcapping"] is None


PERIOD = "full_attention in every n-th layer and in no other"
REFUSED = [
    (windowed("cohere2", "sffs"), f"cohere2: layer_types must have {PERIOD}"),
    (windowed("cohere2", "ssss"), f"cohere2: layer_types must have {PERIOD}"),
    (windowed("cohere2", "fsss"), f"cohere2: layer_types must have {PERIOD}"),
    (gemma3("sffs"), f"gemma3_text: layer_types must have {PERIOD}"),
    (layered("qwen3_next", "lffl", **QWEN3_NEXT), f"qwen3_next: layer_types must have {PERIOD}"),
    (layered("qwen3_next", "ffff", **QWEN3_NEXT), "qwen3_next: layer_types must have linear_attention"),
    (windowed("gpt_oss", "ff"), "gpt_oss: layer_types must have full_attention and sliding_attention"),
    (windowed("olmo3", "ff"), "olmo3: layer_types must have full_attention and sliding_attention"),
    (windowed("afmoe", "ss"), "afmoe: layer_types must have full_attention"),
    (windowed("exaone_moe", "ff", mlp_layer_types=["dense", "sparse"]), "only there: rope depends on that"),
    (layered("lfm2", "cc"), "lfm2: layer_types must have full_attention and conv"),
    (
        {"model_type": "llama4", "text_config": layered("llama4_text", "kkff")},
        "every fourth layer full_attention, without",
    ),
    (
        {"model_type": "nemotron_h", "hidden_size": 32, "layers_block_type": ["linear_attention", "moe"]},
        "nemotron_h: layers_block_type must have full_attention",
    ),
    (new_style("gemma2", final_logit_softcapping=None), "final_logit_softcapping must not be null"),
    (new_style("gemma2", attn_logit_softcapping=None), "attn_logit_softcapping"),
    ({"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_inner": 64}, "gpt2: n_inner must be null or 4 x n_embd"),
    (new_style("qwen2", head_dim=16), "qwen2: head_dim must be hidden_size / num_attention_heads"),
    (new_style("gpt_neox", head_dim=16, intermediate_size=128), "gpt_neox: head_dim"),
    (new_style("llama", {**YARN, "factor": 1.0, "attention_factor": 1.2}), "by 1; attention_factor is 1.2"),
    (new_style("glm_moe_dsa", {**YARN, "mscale_all_dim": 0.7}, **MLA), "the config asks for an attention_factor of"),
]


@pytest.mark.parametrize(("config", "reason"), REFUSED, ids=lambda v: v["model_type"] if isinstance(v, dict) else None)
def test_what_mlx_lm_cannot_express_is_refused_with_the_true_reason(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigRefused) as caught:
        normalize_config(config)
    assert reason in caught.value.reason


def test_yarn_that_is_rounded_far_is_refused_with_the_figure() -> None:
    rope = {**YARN, "factor": 32.0, "original_max_position_embeddings": 4096, "rope_theta": 700.0, "truncate": False}
    assert yarn_rounding(rope, 8) > 1e-3
    with pytest.raises(ConfigRefused, match=r"truncate: false: angles are off by up to 0\.\d+ radians a position"):
        normalize_config(new_style("llama", rope))


@pytest.mark.parametrize("model_type", ["deepseek_v32", "glm_moe_dsa"])
def test_sparse_attention_limits_the_length(model_type: str, tmp_path: Path) -> None:
    config = new_style(model_type, **MLA, index_topk=20, index_n_heads=2, index_head_dim=16)
    done = normalize_config(config)
    assert done.exact_tokens == 20 and "beyond index_topk" in done.warnings[0]
    assert_parity(config, tmp_path)  # of 20 tokens
    with pytest.raises(AssertionError, match="Not equal"):
        assert_parity({**config, "index_topk": 4}, tmp_path / "fewer")
