"""The tiny models of the architecture sweep, as data."""

from __future__ import annotations

import copy
import pkgutil
import random
from dataclasses import dataclass, field
from typing import Any

VOCAB = 96

# Applied wherever the config class has the field.
TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "n_embd": 64,
    "d_model": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_layers": 4,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "sliding_window": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "shared_intermediate_size": 32,
    "embd_pdrop": 0.0,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "state_size": 8,
    "index_topk": 64,
    "index_n_heads": 2,
    "index_head_dim": 16,
}
# What single architectures need besides; None means: leave the class default.
MLA = {"num_key_value_heads": 4, "head_dim": ...}
SPECIFIC: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {
        **MLA,
        "head_dim": 16,
        "layer_group_size": 2,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "first_k_dense_replace": 1,
    },
    "deepseek_v2": MLA,
    "deepseek_v3": MLA,
    "deepseek_v32": MLA,
    "glm4_moe_lite": MLA,
    "glm_moe_dsa": MLA,
    "longcat_flash": {**MLA, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 32, "zero_expert_num": 2, "moe_topk": 2},
    "minicpm3": MLA,
    "mistral4": MLA,
    "kimi_linear": {**MLA, "num_experts_per_token": 2},
    "kimi_k25": {"text_config": {"model_type": "deepseek_v3", **MLA}},
    "dbrx": {
        "attn_config": {"rope_theta": 700.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "falcon_h1": {"mamba_d_ssm": 128, "num_hidden_layers": 3},
    "gemma3_text": {"num_hidden_layers": 6, "query_pre_attn_scalar": 16},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB,
        "laurel_rank": 8,
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": None,
        "intermediate_size": 96,
    },
    "gemma4_text": {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB,
        "num_hidden_layers": 6,
        "global_head_dim": 16,
        "num_kv_shared_layers": 0,
        "pad_token_id": 0,
    },
    "gptj": {"rotary_dim": 8},
    "jamba": {"num_hidden_layers": 8, "mamba_expand": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "recurrent_gemma": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        "num_hidden_layers": 6,
        "lru_width": 64,
        "attention_window_size": 8,
        "num_key_value_heads": 1,
    },
    "step3p5": {"pad_token_id": 0},
    "muse_glimmer": {"num_hidden_layers": 4},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 700.0,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.1,
        }
    },
    "gpt_neox": {"intermediate_size": 256},
    "phimoe": {
        "attention_bias": True,
        "lm_head_bias": True,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 700.0,
            "short_factor": [1.5] * 8,
            "long_factor": [3.0] * 8,
            "short_mscale": 1.2,
            "long_mscale": 1.3,
            "original_max_position_embeddings": 64,
        },
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "olmo3": {"__local_theta__": 700.0},
    "olmo_hybrid": {
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 4,
    },
    "llama4": {"text_config": {"num_experts_per_tok": 1, "intermediate_size_mlp": 96, "attention_chunk_size": 8}},
    "llama4_text": {"num_experts_per_tok": 1, "intermediate_size_mlp": 96, "attention_chunk_size": 8},
    "mimo_v2_flash": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5},
        },
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    },
    "mistral3": {"text_config": {"sliding_window": None}},
}
SPECIFIC["gemma4"] = {"audio_config": None}
SPECIFIC["gemma4_unified_text"] = {
    "pad_token_id": 0,
    "num_hidden_layers": 6,
    "global_head_dim": 16,
    "num_kv_shared_layers": 0,
}
for _name in ("qwen2_vl", "qwen2_5_vl"):
    SPECIFIC[_name] = {
        "text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0, "mrope_section": [2, 3, 3]}}
    }
# The other parts of a model that reads more than text: small, as only the logits of text count here.
SMALL: dict[str, Any] = {
    "depth": 1,
    "num_hidden_layers": 1,
    "num_layers": 1,
    "embed_dim": 32,
    "num_heads": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
}
SMALL_SPECIFIC: dict[str, dict[str, Any]] = {
    "gemma4": {"hidden_size": 32, "head_dim": 16, "global_head_dim": 16, "num_key_value_heads": 2},
    "qwen2_5_vl": {"hidden_size": 32},
    "muse_spark": {"num_hidden_layers": ...},
    "qwen2_vl": {"hidden_size": 64},
    "mistral3": {"hidden_size": 32, "head_dim": 16},
    "llama4": {
        "hidden_size": 32,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
        "intermediate_size": 128,
    },
}
ROPES = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.5],
        "long_factor": [3.0],
        "original_max_position_embeddings": 64,
    },
}
OLD_STYLE = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi",
    "phi3",
    "olmo2",
    "starcoder2",
    "cohere",
    "gemma2",
    "gemma3_text",
    "gpt_neox",
    "stablelm",
    "granite",
    "mixtral",
    "qwen3_moe",
    "glm4",
    "smollm3",
)


@dataclass(frozen=True)
class Case:
    """One tiny model: fields for the config class, and edits of the saved file."""

    model_type: str
    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    rope: dict[str, Any] | None = None
    old_style: bool = False


def shared() -> list[str]:
    """List the model types that both mlx-lm and transformers have."""
    import mlx_lm.models as models
    from mlx_lm.utils import MODEL_REMAPPING
    from transformers import CONFIG_MAPPING

    own = {module.name for module in pkgutil.iter_modules(models.__path__)}
    names = own | set(MODEL_REMAPPING)
    return sorted(name for name in names if name in CONFIG_MAPPING)


def token_ids(length: int) -> list[list[int]]:
    """Return two rows of seeded token ids."""
    source = random.Random(7)
    return [[source.randrange(3, VOCAB) for _ in range(length)] for _ in range(2)]


def make_config(case: Case) -> Any:
    """Build the config object of `case`."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[case.model_type]
    probe = config_class()
    specific = SPECIFIC.get(case.model_type, {})
    if "text_config" in config_class.sub_configs:
        fields = {**specific}
        text_type = specific.get("text_config", {}).get("model_type") or probe.text_config.model_type
        text = _text_fields(
            CONFIG_MAPPING.get(text_type) if hasattr(CONFIG_MAPPING, "get") else CONFIG_MAPPING[text_type],
            probe.text_config,
            {**SPECIFIC.get(text_type, {}), **specific.get("text_config", {}), **_own(case)},
        )
        fields["text_config"] = {**text, "model_type": text_type}
        for part in set(config_class.sub_configs) - {"text_config"}:
            real = vars(getattr(probe, part)) if getattr(probe, part, None) is not None else {}
            small = {**SMALL, **SMALL_SPECIFIC.get(case.model_type, {})}
            fields.setdefault(
                part, {name: value for name, value in small.items() if name in real and value is not Ellipsis}
            )
        if "tie_word_embeddings" in case.fields:
            fields["tie_word_embeddings"] = case.fields["tie_word_embeddings"]
        return config_class(**fields)
    return config_class(**_text_fields(config_class, probe, {**specific, **_own(case)}))


def _own(case: Case) -> dict[str, Any]:
    return {**case.fields, **({"__rope__": case.rope} if case.rope else {})}


def _text_fields(config_class: Any, probe: Any, own: dict[str, Any]) -> dict[str, Any]:
    own = dict(own)
    scaling = own.pop("__rope__", {})
    local_theta = own.pop("__local_theta__", 300.0)
    real = vars(probe)
    fields = {name: value for name, value in TINY.items() if name in real}
    fields.update(own)
    fields = {name: value for name, value in fields.items() if value is not Ellipsis}
    if "rope_parameters" in real and "rope_parameters" in fields and "factor" not in scaling:
        fields["rope_parameters"] = {**fields["rope_parameters"], **scaling}
    elif "rope_parameters" in real:
        fields["rope_parameters"] = _rope(fields.get("rope_parameters") or probe.rope_parameters, scaling, local_theta)
    return fields


def _rope(default: Any, scaling: dict[str, Any], local_theta: float) -> dict[str, Any] | None:
    if default is None:
        default = {}
    nested = {key: value for key, value in default.items() if isinstance(value, dict)}
    if nested:
        first = next((key for key in ("full_attention",) if key in nested), next(iter(nested)))
        return {
            key: {
                **{k: v for k, v in value.items()},
                "rope_theta": 700.0 if key == first else local_theta,
                **(scaling if key == first else {}),
            }
            for key, value in nested.items()
        }
    base = {
        "rope_type": "default",
        **{k: v for k, v in default.items() if k in ("partial_rotary_factor", "mrope_section")},
    }
    return {**base, "rope_theta": 700.0, **scaling}


def _sized(rope: dict[str, Any], config: Any) -> dict[str, Any]:
    """Repeat the factors of longrope once per rotated pair."""
    if rope.get("rope_type") != "longrope" or len(rope["short_factor"]) > 1:
        return rope
    sizes = vars(config)
    width = sizes.get("qk_rope_head_dim") or sizes.get("head_dim") or config.hidden_size // config.num_attention_heads
    pairs = int(width * (config.rope_parameters.get("partial_rotary_factor") or 1.0)) // 2
    return {**rope, "short_factor": [1.5] * pairs, "long_factor": [3.0] * pairs}


def variants(model_type: str) -> list[Case]:
    """List the cases of one architecture for the table."""
    listed = [
        Case(model_type, "base"),
        Case(model_type, "tied", {"tie_word_embeddings": True}),
        Case(model_type, "untied", {"tie_word_embeddings": False}),
    ]
    from transformers import CONFIG_MAPPING

    wide: dict[str, Any] = {}
    probe = CONFIG_MAPPING[model_type]()
    text = probe.get_text_config()
    if getattr(make_config(listed[0]).get_text_config(), "sliding_window", None):
        wide = {"sliding_window": 64}
        listed = [listed[0], Case(model_type, "wide window", wide)]
        listed += [
            Case(model_type, name, {"tie_word_embeddings": name == "tied", **wide}) for name in ("tied", "untied")
        ]
    if getattr(text, "rope_parameters", None) is not None:
        base = make_config(listed[0]).get_text_config()
        for name, rope in ROPES.items():
            listed.append(Case(model_type, f"rope {name}", wide, _sized(rope, base)))
    if model_type in OLD_STYLE:
        listed.append(Case(model_type, "old-style config", wide, old_style=True))
    return listed


ROOT_NAMES = {"gpt_neox": ("rotary_emb_base", "rotary_pct")}


def edit_saved(case: Case, saved: dict[str, Any]) -> dict[str, Any]:
    """Rewrite a saved config as transformers 4 wrote it, where the case asks for that."""
    if not case.old_style:
        return saved
    saved = copy.deepcopy(saved)
    rope = saved.pop("rope_parameters", {})
    if any(isinstance(value, dict) for value in rope.values()):
        saved["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    theta, factor = ROOT_NAMES.get(case.model_type, ("rope_theta", "partial_rotary_factor"))
    saved[theta] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        saved[factor] = rope["partial_rotary_factor"]
    saved["torch_dtype"] = saved.pop("dtype", "float32")
    saved["transformers_version"] = "4.51.0"
    return saved
