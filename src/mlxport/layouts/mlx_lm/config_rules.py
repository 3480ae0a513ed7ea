"""Where single mlx-lm architectures look for what, as data.

One :class:`Architecture` per model_type or module of ``mlx_lm.models``; the engine in ``mlx_lm_config`` reads them. A
row says which rope scalings an architecture applies, and under which other name or form it reads a field.
What it has built in is in ``mlx_lm_limits``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from mlxport.layouts.mlx_lm.config_view import MISSING, ConfigSection, text_section
from mlxport.layouts.mlx_lm.layer_kinds import period, period_within

Derive = Callable[[ConfigSection], Any]
NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

EVERY_ROPE: Final = frozenset({"linear", "dynamic", "llama3", "yarn", "longrope", "proportional"})
BUT_LONGROPE: Final = EVERY_ROPE - {"longrope"}  # mlx-lm's longrope rotates halves, not neighbours
NO_ROPE: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class Architecture:
    """Where one mlx-lm architecture looks for what.

    Attributes:
        rope_types: the rope scalings that it applies; any other type but "default" is refused.
        rope_needs: what a rope scaling must have for it to be applied.
        one_theta: layers with sliding attention share ``rope_theta`` with the others.
        raw_rope: it applies ``rope_parameters`` as they stand, whatever ``rope_scaling`` says.
        wide_rope: its rope is as wide as a head where there is a ``partial_rotary_factor`` too.
        default_scaling: what it needs as ``rope_scaling`` where there is none.
        derived: the name of a field of mlx-lm's arguments -> how to compute it, MISSING to leave it.
    """

    rope_types: frozenset[str] = EVERY_ROPE
    rope_needs: tuple[str, ...] = ()
    one_theta: bool = False
    raw_rope: bool = False
    wide_rope: bool = False
    default_scaling: Derive | None = None
    derived: Mapping[str, Derive] = field(default_factory=lambda: NOTHING)


def same_as(name: str, default: Any = MISSING) -> Derive:
    """Read the field `name` of the config."""
    return lambda view: view.get(name, default)


def constant(value: Any) -> Derive:
    """Write `value` whatever the config says."""
    return lambda view: value


def head_dim(view: ConfigSection) -> Any:
    """Return the width of a head, an equal share of the hidden size where the config does not say."""
    heads, width = view.get("num_attention_heads"), view.get("hidden_size")
    return view.get("head_dim") or (width // heads if heads and width else MISSING)


def _rotary_dim(view: ConfigSection) -> Any:
    return int(head_dim(view) * view.rope("partial_rotary_factor", 1.0))


def _window_pattern(view: ConfigSection) -> Any:
    kinds = view.get("layer_types") or []
    return (
        "".join("L" if kind == "sliding_attention" else "G" for kind in kinds) if "sliding_attention" in kinds else None
    )


def _dense_flags(view: ConfigSection) -> Any:
    kinds = view.get("mlp_layer_types")
    return MISSING if kinds is None else [int(kind != "dense") for kind in kinds]


def _first_sparse(view: ConfigSection) -> Any:
    kinds = view.get("mlp_layer_types")
    if kinds is None:
        return view.get("first_k_dense_replace", MISSING)
    return next((index for index, kind in enumerate(kinds) if kind != "dense"), len(kinds))


def _layer_letters(letters: Mapping[str, Any]) -> Derive:
    return lambda view: [letters[kind] for kind in view.get("layer_types") or []] or MISSING


def _flat_yarn(view: ConfigSection) -> Any:
    """Return yarn settings that scale nothing, for code that knows nothing else."""
    length = view.get("max_position_embeddings")
    return {
        "type": "yarn",
        "rope_type": "yarn",
        "factor": 1.0,
        "mscale": 1,
        "mscale_all_dim": 0,
        "original_max_position_embeddings": length,
    }


def _flat_longrope(view: ConfigSection) -> Any:
    """Return longrope settings that scale nothing, for code that knows nothing else."""
    ones = [1.0] * (view.get("qk_rope_head_dim", 0) // 2)
    length = view.get("max_position_embeddings")
    return {
        "type": "longrope",
        "rope_type": "longrope",
        "short_factor": ones,
        "long_factor": ones,
        "original_max_position_embeddings": length,
    }


def _of_full_layers(own: str, shared: str) -> Derive:
    """Read what layers with full attention have of their own: mlx-lm's `own` is their `shared`."""

    def derive(view: ConfigSection) -> Any:
        if view.section.get(own) is not None:
            return MISSING
        kinds = view.get("layer_types") or []
        for layer, fields in (view.section.get("per_layer_config") or {}).items():
            if shared in fields and kinds[int(layer)] == "full_attention":
                return fields[shared]
        return view.section.get(shared, MISSING)

    return derive


def _kinds(names: Mapping[str, str]) -> Derive:
    """Spell the layer types as mlx-lm does."""
    return lambda view: [names.get(kind, kind) for kind in view.get("layer_types") or []] or MISSING


def _sliding_flags(view: ConfigSection) -> Any:
    return [int(kind == "sliding_attention") for kind in view.get("layer_types") or []] or MISSING


_INTERVAL: Final[Mapping[str, Derive]] = MappingProxyType({"full_attention_interval": period})

_GEMMA4 = Architecture(
    wide_rope=True,
    derived={
        # None, where the file leaves it out, is not what mlx-lm takes then
        "final_logit_softcapping": same_as("final_logit_softcapping"),
        "global_head_dim": _of_full_layers("global_head_dim", "head_dim"),
        "hidden_size_per_layer_input": lambda view: view.get("hidden_size_per_layer_input") or 0,
        "num_global_key_value_heads": _of_full_layers("num_global_key_value_heads", "num_key_value_heads"),
    },
)

ARCHITECTURES: Final[Mapping[str, Architecture]] = MappingProxyType(
    {
        "apertus": Architecture(
            derived={"mlp_bias": constant(False), "post_norm": constant(False), "qk_norm": constant(True)},
        ),
        "cohere2": Architecture(derived={"sliding_window_pattern": period}),
        "deepseek_v2": Architecture(frozenset({"yarn"}), default_scaling=_flat_yarn),
        "deepseek_v3": Architecture(BUT_LONGROPE),
        "deepseek_v32": Architecture(BUT_LONGROPE),
        "exaone4": Architecture(derived={"sliding_window_pattern": _window_pattern}),
        "exaone_moe": Architecture(derived={"is_moe_layer": lambda view: [bool(flag) for flag in _dense_flags(view)]}),
        "gemma3_text": Architecture(derived={"sliding_window_pattern": period_within}),
        "gemma4": _GEMMA4,
        "gemma4_text": _GEMMA4,
        "glm4_moe": Architecture(NO_ROPE),
        "glm4_moe_lite": Architecture(BUT_LONGROPE),
        "glm_moe_dsa": Architecture(
            BUT_LONGROPE,
            raw_rope=True,
            derived={
                "topk_method": constant("noaux_tc"),
                "scoring_func": constant("sigmoid"),
                "moe_layer_freq": constant(1),
            },
        ),
        "gpt2": Architecture(derived={"n_ctx": same_as("n_positions")}),
        "gpt_bigcode": Architecture(derived={"n_inner": lambda view: view.get("n_inner") or 4 * view.get("n_embd")}),
        "gpt_neox": Architecture(
            derived={
                "rotary_emb_base": lambda view: view.rope("rope_theta", 10000.0),
                "rotary_pct": lambda view: view.rope("partial_rotary_factor", 0.25),
            },
        ),
        "gpt_oss": Architecture(frozenset({"linear", "llama3", "yarn"})),
        "granitemoehybrid": Architecture(
            derived={
                "position_embedding_type": lambda view: (
                    "rope" if view.get("position_embedding_type") == "rope" else "nope"
                ),
                "layer_types": _kinds({"linear_attention": "mamba", "full_attention": "attention"}),
            },
        ),
        "hunyuan_v1_dense": Architecture(frozenset({"dynamic"}), rope_needs=("alpha", "factor")),
        "internlm3": Architecture(frozenset({"linear", "dynamic"})),
        "lfm2": Architecture(
            NO_ROPE,
            derived={"block_dim": same_as("hidden_size"), "block_ff_dim": same_as("intermediate_size")},
        ),
        "lfm2_moe": Architecture(NO_ROPE),
        "llama4": Architecture(BUT_LONGROPE),
        "mamba2": Architecture(
            derived={"intermediate_size": lambda view: view.get("num_heads") * view.get("head_dim")}
        ),
        "mimo_v2_flash": Architecture(
            derived={
                "hybrid_layer_pattern": _sliding_flags,
                "moe_layer_freq": _dense_flags,
                "add_swa_attention_sink_bias": constant(True),
                "add_full_attention_sink_bias": constant(False),
                "sliding_window_size": same_as("sliding_window"),
                "n_shared_experts": constant(None),
                "topk_method": constant("noaux_tc"),
                "scoring_func": constant("sigmoid"),
                "layernorm_epsilon": same_as("rms_norm_eps"),
                "swa_rope_theta": lambda view: view.rope("rope_theta", layers="sliding_attention"),
                "swa_num_attention_heads": same_as("num_attention_heads"),
                "swa_num_key_value_heads": lambda view: 2 * view.get("num_key_value_heads"),
                "swa_head_dim": same_as("head_dim"),
                "swa_v_head_dim": same_as("v_head_dim"),
            },
        ),
        "mellum": Architecture(frozenset({"dynamic", "llama3", "yarn"})),
        # its tied head is not divided as the config asks; a head of its own is
        "minicpm3": Architecture(
            frozenset({"longrope"}), default_scaling=_flat_longrope, derived={"tie_word_embeddings": constant(False)}
        ),
        "minimax": Architecture(derived={"rotary_dim": _rotary_dim, "shared_intermediate_size": constant(0)}),
        "minimax_m3_vl": Architecture(derived={"rotary_dim": _rotary_dim}),
        "ministral3": Architecture(frozenset({"yarn"})),
        "mistral4": Architecture(raw_rope=True),
        "mixtral": Architecture(NO_ROPE),
        "muse_glimmer": Architecture(NO_ROPE),
        "nemotron": Architecture(frozenset({"linear"})),
        "nemotron_h": Architecture(
            derived={"time_step_limit": lambda view: (view.get("time_step_min", 0.0), float("inf"))},
        ),
        "olmo3": Architecture(one_theta=True),
        "olmo_hybrid": Architecture(NO_ROPE),
        "phi3": Architecture(frozenset({"longrope"})),
        "phimoe": Architecture(frozenset({"longrope"})),
        "qwen2_moe": Architecture(NO_ROPE),
        "qwen3_moe": Architecture(NO_ROPE),
        "qwen3_5": Architecture(BUT_LONGROPE, raw_rope=True, derived=_INTERVAL),
        "qwen3_5_moe": Architecture(BUT_LONGROPE, raw_rope=True, derived=_INTERVAL),
        "qwen3_next": Architecture(derived=_INTERVAL),
        # its sanitize takes a head for granted
        "qwen3_vl_moe": Architecture(
            NO_ROPE, derived={"norm_topk_prob": constant(True), "tie_word_embeddings": constant(False)}
        ),
        "solar_open": Architecture(
            NO_ROPE,
            derived={
                "first_k_dense_replace": constant(0),
                "intermediate_size": same_as("moe_intermediate_size"),
                "partial_rotary_factor": lambda view: view.rope("partial_rotary_factor", 1.0),
            },
        ),
    }
)
"""model_type, or the module of ``mlx_lm.models`` that loads it -> where that looks for what."""

UNRELATED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "olmo": "mlx-lm's olmo loads the layout of ai2-olmo, not that of transformers",
        "minimax": "mlx-lm's minimax is MiniMax-M2; MiniMax-Text-01, with lightning attention, is another model",
    }
)
"""model_type -> why mlx-lm's architecture of that name is another model."""

INNER: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "gemma3": ("gemma3_text", "ModelArgs"),
        "gemma3n": ("gemma3n", "TextConfig"),
        "gemma4": ("gemma4_text", "ModelArgs"),
        "kimi_k25": ("deepseek_v3", "ModelArgs"),
        "llama4": ("llama4", "TextArgs"),
        "minimax_m3_vl": ("minimax_m3_vl", "TextArgs"),
        "muse_glimmer": ("muse_glimmer", "ModelArgs"),
        "muse_spark": ("muse_spark", "TextArgs"),
        "pixtral": ("llama", "ModelArgs"),
        "qwen2_vl": ("qwen2", "ModelArgs"),
        "qwen3_5": ("qwen3_5", "TextModelArgs"),
        "qwen3_5_moe": ("qwen3_5", "TextModelArgs"),
        "qwen3_vl": ("qwen3", "ModelArgs"),
        "qwen3_vl_moe": ("qwen3_moe", "ModelArgs"),
    }
)
"""A module that wraps a text model -> the module and class of the arguments that read its ``text_config``."""


def inner_arguments(module: str, config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return module and class of the arguments that read the inner text model of `config`, None where it has none."""
    if module == "mistral3":
        kind = (text_section(config) or {}).get("model_type")
        return (kind if kind in ("ministral3", "mistral4") else "llama", "ModelArgs")
    return INNER.get(module)


def architecture(*names: str) -> Architecture:
    """Return the first row that one of `names` has."""
    return next((ARCHITECTURES[name] for name in names if name in ARCHITECTURES), Architecture())
