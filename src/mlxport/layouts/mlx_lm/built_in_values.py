"""What mlx-lm's architectures have built in, as data: the values that they compute whatever a config says.

Every row was found by changing that one field of a tiny model and comparing logits with transformers
(``benchmarks/sweep_architectures.py --perturb``): other values give wrong logits, or weights that do not load. Rows are
keyed by model_type or by the module of ``mlx_lm.models`` that loads it; a config is held to the rows of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from mlxport.layouts.mlx_lm.config_view import ConfigSection
from mlxport.layouts.mlx_lm.layer_kinds import BOTH, FOURTH, FULL, REPEATS, REPEATS_OR_SLIDES, WINDOW, Demand, needs

SILU: Final = "silu"
GELU: Final = "gelu"
GELU_TANH: Final = "gelu_tanh"
RELU2: Final = "relu2"
FUNCTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "silu": SILU,
        "swish": SILU,
        "gelu": GELU,
        "gelu_python": GELU,
        "gelu_pytorch_tanh": GELU_TANH,
        "gelu_new": GELU_TANH,
        "gelu_fast": GELU_TANH,
        "relu2": RELU2,
    }
)
"""The names that transformers gives an activation -> the function, itself where there is no other name."""

ACTIVATION_FIELDS: Final = ("hidden_activation", "activation_function", "mlp_hidden_act", "hidden_act")

ACTIVATION: Final[Mapping[str, str]] = MappingProxyType(
    {
        "apertus": "xielu",
        "bitnet": RELU2,
        "gemma": GELU,
        "gemma2": GELU_TANH,
        "gemma3_text": GELU_TANH,
        "gemma3n": GELU_TANH,
        "gemma4_text": GELU_TANH,
        "gpt2": GELU_TANH,
        "gpt_bigcode": GELU,
        "gpt_neox": GELU_TANH,
        "gpt_oss": "",
        "gptj": GELU_TANH,
        "nanochat": RELU2,
        "nemotron": RELU2,
        "nemotron_h": RELU2,
        "phi": GELU_TANH,
        "recurrent_gemma": GELU_TANH,
        "starcoder2": GELU,
    }
)
"""The activation of an architecture; SILU where none is named, "" where transformers too reads no such field."""

_NO: Final = (False,)
_YES: Final = (True,)
_TIED: Final = ("tie_word_embeddings", _YES)

ONLY: Final[Mapping[str, Mapping[str, tuple[Any, ...]]]] = MappingProxyType(
    {
        "afmoe": {"attention_bias": _NO},
        "apertus": {"attention_bias": _NO},
        "cohere": dict([_TIED]),
        "cohere2": dict([_TIED]),
        "deepseek_v2": {"mlp_bias": _NO},
        "deepseek_v3": {"rope_interleave": _YES},
        "dots1": {"attention_bias": _NO},
        "gemma": {"attention_bias": _NO, **dict([_TIED])},
        "gemma2": {"attention_bias": _NO, **dict([_TIED])},
        "gemma3_text": {
            "attention_bias": _NO,
            "final_logit_softcapping": (None,),
            "use_bidirectional_attention": (False, None),
        },
        "gemma4": dict([_TIED]),
        "gemma4_text": {"attention_bias": _NO},
        "glm": {"partial_rotary_factor": (1.0,)},
        "glm4_moe_lite": {"rope_interleave": _YES},
        "gpt2": {"scale_attn_by_inverse_layer_idx": _NO, "scale_attn_weights": _YES, **dict([_TIED])},
        "gpt_bigcode": {"multi_query": _YES, "scale_attn_weights": _YES},
        "gpt_neox": {"attention_bias": _YES},
        "gpt_oss": {"attention_bias": _YES, "swiglu_alpha": (1.702,)},
        "granitemoehybrid": {"mamba_n_groups": (1,)},
        "jamba": {"num_experts": (1,)},
        "laguna": {"attention_bias": _NO, "gating": (True, "per-head")},
        "lfm2": dict([_TIED]),
        "lfm2_moe": dict([_TIED]),
        "llama4_text": {"moe_layers": ([], None)},
        "mamba2": {"n_groups": (1,)},
        "mellum": {"attention_bias": _NO},
        "mimo_v2_flash": {"attention_bias": _NO},
        "minicpm3": {"mlp_bias": _NO},
        "muse_glimmer": {"attention_bias": _NO},
        "nanochat": {"attention_bias": _NO, "final_logit_softcapping": (15.0,)},
        "nemotron_h": {
            "attention_bias": _NO,
            "mamba_hidden_act": ("silu", "swish"),
            "mamba_proj_bias": _NO,
            "use_bias": _NO,
        },
        "olmoe": {"clip_qkv": (None,)},
        "phi": {"qk_layernorm": _NO},
        "phimoe": {"attention_bias": _YES, "lm_head_bias": _YES},
        "qwen": {"rotary_emb_base": (10000,), "rotary_pct": (1,), "scale_attn_weights": _YES},
        "qwen2_moe": {
            "decoder_sparse_step": (1,),
            "norm_topk_prob": _NO,
            "qkv_bias": _YES,
            "mlp_only_layers": ([], None),
        },
        "qwen3": {"attention_bias": _NO},
        "qwen3_moe": {"attention_bias": _NO},
        "recurrent_gemma": {
            "attention_bias": _NO,
            "num_key_value_heads": (1,),
            "rope_theta": (10000.0,),
            "partial_rotary_factor": (0.5,),
        },
        "starcoder2": {"use_bias": _YES},
    }
)
"""field -> the values that an architecture computes; others are refused."""

NEAR: Final[Mapping[str, Mapping[str, tuple[Any, ...]]]] = MappingProxyType(
    {
        "glm4_moe_lite": {"rms_norm_eps": (1e-5,)},
        "mamba": {"layer_norm_epsilon": (1e-5,)},
        "mamba2": {"layer_norm_epsilon": (1e-5,)},
        "nanochat": {"rms_norm_eps": (1e-5,)},
        "recurrent_gemma": {"rms_norm_eps": (1e-6,)},
    }
)
"""field -> the values that an architecture computes exactly; with others it is off by little, which is said."""

IGNORES_WINDOW: Final = frozenset(
    {
        "gemma2",
        "ministral3",
        "mistral",
        "mixtral",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "starcoder2",
    }
)
"""Architectures that attend to all tokens where the config asks for a sliding window."""

LAST_IS_FULL: Final = frozenset({"gemma3_text"})
"""Architectures whose last layer attends to all tokens where the config has a sliding window in every layer."""


SPARSE: Final[Mapping[str, str]] = MappingProxyType({"deepseek_v32": "index_topk", "glm_moe_dsa": "index_topk"})
"""field -> the number of tokens up to which attention is dense; of more, mlx-lm chooses others than transformers."""

GROWS: Final[Mapping[str, tuple[tuple[str, ...], str, int]]] = MappingProxyType(
    {"qwen": (("use_dynamic_ntk", "use_logn_attn"), "seq_length", 8192)}
)
"""Switches of what the original changes in its attention beyond a length, and mlx-lm does not -> the field of that
length and its default. The switches are on where the config leaves them out (Qwen's own code, of 2023)."""


def _plain_heads(view: ConfigSection) -> bool:
    return view.get("head_dim") in (None, view.get("hidden_size") // view.get("num_attention_heads"))


def _rope_as_it_is(view: ConfigSection) -> bool:
    return view.get("position_embedding_type") != "rope" or view.rope("rope_type") in (None, "default")


def _both_kinds(view: ConfigSection) -> bool:
    kinds = set(view.get("layer_types") or ())
    return not view.get("sliding_window") or kinds >= {"sliding_attention", "full_attention"}


def _fields_set(*names: str) -> Demand:
    return f"{' and '.join(names)} must not be null or 0", lambda view: all(view.get(name) for name in names)


_PLAIN_HEADS: Final = ("head_dim must be hidden_size / num_attention_heads", _plain_heads)

DEMANDS: Final[Mapping[str, tuple[Demand, ...]]] = MappingProxyType(
    {
        "afmoe": (FULL,),
        "apertus": (_PLAIN_HEADS,),
        "bitnet": (
            ("weights must be packed, with a quantization_config", lambda v: bool(v.get("quantization_config"))),
        ),
        "cohere": (_PLAIN_HEADS,),
        "cohere2": (_PLAIN_HEADS, REPEATS),
        "exaone4": (("layers must be of both kinds of attention", _both_kinds),),
        "exaone_moe": (WINDOW,),
        # a cap so high that it changes nothing would cost float32 its last digits
        "gemma2": (_fields_set("attn_logit_softcapping", "final_logit_softcapping"),),
        "gemma3_text": (REPEATS_OR_SLIDES,),
        "gemma3n": (BOTH,),
        "gpt2": (
            (
                "n_inner must be null or 4 x n_embd",
                lambda v: v.get("n_inner") in (None, 4 * v.get("n_embd", 768)),
            ),
        ),
        "gpt_neox": (
            _PLAIN_HEADS,
            (
                "intermediate_size must be 4 x hidden_size",
                lambda v: v.get("intermediate_size") == 4 * v.get("hidden_size"),
            ),
        ),
        "gpt_oss": (BOTH,),
        "granite": (_PLAIN_HEADS,),
        "granitemoe": (_PLAIN_HEADS,),
        "granitemoehybrid": (_PLAIN_HEADS, ("its rope is not scaled", _rope_as_it_is)),
        "internlm3": (_PLAIN_HEADS,),
        "jamba": (_PLAIN_HEADS, needs("full_attention", "linear_attention", field="layers_block_type")),
        "laguna": (FULL,),
        "lfm2": (_PLAIN_HEADS, needs("full_attention", "conv")),
        "lfm2_moe": (_PLAIN_HEADS, needs("full_attention", "conv")),
        "llama": (FULL,),
        "llama4": (FOURTH,),
        "mellum": (FULL,),
        "mimo_v2_flash": (BOTH,),
        "ministral3": (FULL,),
        "mixtral": (_PLAIN_HEADS,),
        "nanochat": (_PLAIN_HEADS,),
        "nemotron_h": (needs("full_attention", "linear_attention", field="layers_block_type"),),
        "olmo3": (BOTH,),
        "phi": (_PLAIN_HEADS,),
        "phi3": (_PLAIN_HEADS,),
        "phimoe": (_PLAIN_HEADS,),
        "qwen2": (_PLAIN_HEADS,),
        "qwen2_moe": (_PLAIN_HEADS,),
        "qwen3_5": (REPEATS, needs("linear_attention")),
        "qwen3_next": (REPEATS, needs("linear_attention")),
        "stablelm": (_PLAIN_HEADS,),
        "starcoder2": (_PLAIN_HEADS,),
    }
)
"""What an architecture takes for granted, and whether a config keeps it."""
