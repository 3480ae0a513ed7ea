"""Repairs of weight names and layouts that mlx-lm's own ``sanitize`` does not know.

They come before ``sanitize``, which stays the definition of each layout. Every rule is data and touches only names that
transformers saves, so that weights already in mlx-lm's layout pass unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mlxport.model_config import ModelConfig

if TYPE_CHECKING:
    import mlx.core as mx

Weight = TypeVar("Weight")
Part = Callable[["mx.array"], "mx.array"]


@dataclass(frozen=True)
class Rewrite:
    """Names that match `pattern` become those of `targets`, each a template and a lazy operation or None."""

    pattern: str
    targets: tuple[tuple[str, Part | None], ...]


@dataclass(frozen=True)
class Stacking:
    """Names that match `pattern`, alike but for the number in the group ``n``, become one array under `target`."""

    pattern: str
    target: str


@dataclass(frozen=True)
class Alias:
    """`name` is absent because it equals `source`, and mlx-lm wants both."""

    name: str
    source: str


def _rename(pattern: str, target: str) -> Rewrite:
    return Rewrite(pattern, ((target, None),))


def _swap(array: mx.array) -> mx.array:
    return array.swapaxes(-1, -2)


def _even_columns(array: mx.array) -> mx.array:
    return array[..., ::2].swapaxes(-1, -2)


def _odd_columns(array: mx.array) -> mx.array:
    return array[..., 1::2].swapaxes(-1, -2)


def _even(array: mx.array) -> mx.array:
    return array[..., ::2]


def _odd(array: mx.array) -> mx.array:
    return array[..., 1::2]


REWRITES: Final[Mapping[str, tuple[Rewrite, ...]]] = MappingProxyType(
    {
        "gpt2": (_rename(r"^transformer\.(.*)", r"\1"),),
        # sanitize knows the packed experts (``_blocks``), not the plain ones; it leaves alone what has gate_proj.weight
        "gpt_oss": (
            Rewrite(
                r"(.*\.experts)\.gate_up_proj$",
                ((r"\1.gate_proj.weight", _even_columns), (r"\1.up_proj.weight", _odd_columns)),
            ),
            Rewrite(r"(.*\.experts)\.gate_up_proj_bias$", ((r"\1.gate_proj.bias", _even), (r"\1.up_proj.bias", _odd))),
            Rewrite(r"(.*\.experts)\.down_proj$", ((r"\1.down_proj.weight", _swap),)),
            _rename(r"(.*\.experts)\.down_proj_bias$", r"\1.down_proj.bias"),
        ),
        "kimi_k25": (
            Rewrite(r"(model\.)?(mm_projector|vision_tower)\..*", ()),
            _rename(r"(language_model\.model)\.blocks\.(.*)", r"\1.layers.\2"),
        ),
        "muse_glimmer": (Rewrite(r"(model\.)?vision_(tower|adapter|projection)\..*", ()),),
        "nanochat": (
            _rename(r"^model\.embed_tokens\.(.*)", r"transformer.wte.\1"),
            _rename(r"^model\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(.*)", r"transformer.h.\1.attn.c_\2.\3"),
            _rename(r"^model\.layers\.(\d+)\.self_attn\.o_proj\.(.*)", r"transformer.h.\1.attn.c_proj.\2"),
            _rename(r"^model\.layers\.(\d+)\.mlp\.fc1\.(.*)", r"transformer.h.\1.mlp.c_fc.\2"),
            _rename(r"^model\.layers\.(\d+)\.mlp\.fc2\.(.*)", r"transformer.h.\1.mlp.c_proj.\2"),
        ),
        "olmo_hybrid": (
            _rename(r"(.*)\.attention_layer_norm\.(.*)", r"\1.input_layernorm.\2"),
            _rename(r"(.*)\.feedforward_layer_norm\.(.*)", r"\1.post_attention_layernorm.\2"),
        ),
    }
)
"""model_type -> the rewrites of its names, the first match of a name counts."""

_EXPERTS = r"(?P<a>.*)\.experts\.(?P<n>\d+)\.(?P<b>gate_proj|up_proj|down_proj)\.weight"
STACKS: Final[Mapping[str, Stacking]] = MappingProxyType(
    {
        # sanitize knows the merged experts of the published checkpoints; transformers saves them one by one
        "qwen3_5_moe": Stacking(_EXPERTS, r"\g<a>.switch_mlp.\g<b>.weight"),
    }
)
"""model_type -> the arrays that mlx-lm holds in one."""

SCALES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = MappingProxyType(
    {
        # sanitize folds attention_in_multiplier into q and k alone, and looks for key_multiplier under another name
        "falcon_h1": (
            (r".*\.k_proj\.(weight|bias)", "key_multiplier"),
            (r".*\.v_proj\.weight", "attention_in_multiplier"),
        ),
    }
)
"""model_type -> names to multiply by a field of the config, where the weights are still as transformers has them."""

_INNER_HEAD = Alias("language_model.lm_head.weight", "language_model.model.embed_tokens.weight")
_HEAD = Alias("lm_head.weight", "model.embed_tokens.weight")
ALIASES: Final[Mapping[str, Alias]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "deepseek_v2",
                "deepseek_v3",
                "deepseek_v32",
                "glm4",
                "glm4_moe",
                "glm4_moe_lite",
                "glm_moe_dsa",
                "gpt_oss",
                "helium",
                "mimo_v2_flash",
                "minicpm3",
                "nanochat",
                "phi",
                "phimoe",
                "qwen2_moe",
                "solar_open",
                "stablelm",
            ),
            _HEAD,
        ),
        "gpt_neox": Alias("embed_out.weight", "gpt_neox.embed_in.weight"),
        "gptj": Alias("lm_head.weight", "transformer.wte.weight"),
        "kimi_k25": _INNER_HEAD,
        "llama4": _INNER_HEAD,
        "qwen3_vl_moe": Alias("lm_head.weight", "model.language_model.embed_tokens.weight"),
    }
)
"""model_type -> the output layer that a tied checkpoint leaves out and mlx-lm wants."""


IGNORED: Final[Mapping[str, str]] = MappingProxyType({"ernie4_5_moe": r".*\.moe_statics\.e_score_correction_bias"})
"""model_type -> the names of weights that mlx-lm drops though they count."""


def prepare_weights(weights: dict[str, mx.array], config: Mapping[str, Any]) -> dict[str, mx.array]:
    """Return `weights` as mlx-lm's ``sanitize`` expects them; lazy operations only.

    Args:
        weights: name -> array, as in the checkpoint.
        config: the normalized config; ``model_type`` selects the rules.
    """
    model_type = str(config.get("model_type"))
    alias = ALIASES.get(model_type)
    out = dict(weights)
    if alias and alias.name not in out and alias.source in out:
        out[alias.name] = out[alias.source]
    if (stack := STACKS.get(model_type)) is not None:
        out = _stacked(out, stack)
    if (scales := SCALES.get(model_type)) is not None and _has_torch_convolutions(out):
        out = {name: _scaled(name, array, scales, config) for name, array in out.items()}
    if model_type == "qwen3_vl_moe":
        out = _published_orientation(out, ModelConfig(config).text)
    if (rewrites := _applicable(model_type, out)) is None:
        return out
    return {name: array for key, value in out.items() for name, array in _rewritten(key, value, rewrites)}


def ignored_weights(weights: Mapping[str, Weight], config: Mapping[str, Any]) -> dict[str, Weight]:
    """Return the weights (arrays or references) that mlx-lm drops though transformers uses them.

    The output is equal only if all of them are zero.
    """
    pattern = IGNORED.get(str(config.get("model_type")))
    return {} if pattern is None else {name: array for name, array in weights.items() if re.fullmatch(pattern, name)}


def _applicable(model_type: str, weights: Mapping[str, Any]) -> tuple[Rewrite, ...] | None:
    packed = model_type == "gpt_oss" and any(name.endswith("_blocks") for name in weights)
    return None if packed else REWRITES.get(model_type)


def _has_torch_convolutions(weights: Mapping[str, mx.array]) -> bool:
    return any(name.endswith("conv1d.weight") and array.shape[-1] > array.shape[1] for name, array in weights.items())


def _scaled(name: str, array: mx.array, scales: tuple[tuple[str, str], ...], config: Mapping[str, Any]) -> mx.array:
    for pattern, field in scales:
        if re.fullmatch(pattern, name):
            array = array * config.get(field, 1.0)
    return array


def _published_orientation(weights: dict[str, mx.array], sizes: Mapping[str, Any]) -> dict[str, mx.array]:
    """Swap the axes of merged experts that transformers 5 saved as it holds them, not as sanitize expects them."""
    rows, columns = sizes.get("hidden_size"), sizes.get("moe_intermediate_size")
    new = {"experts.down_proj": (rows, columns), "experts.gate_up_proj": (2 * int(columns or 0), rows)}
    parts = {name: array for name, array in weights.items() if name.endswith(tuple(new))}
    if not parts or any(array.shape[-2:] != new[name[name.index("experts.") :]] for name, array in parts.items()):
        return weights
    return weights | {name: array.swapaxes(-1, -2) for name, array in parts.items()}


def _stacked(weights: Mapping[str, mx.array], rule: Stacking) -> dict[str, mx.array]:
    import mlx.core as mx

    out: dict[str, mx.array] = {}
    parts: dict[str, dict[int, mx.array]] = {}
    for key, value in weights.items():
        if match := re.fullmatch(rule.pattern, key):
            parts.setdefault(match.expand(rule.target), {})[int(match["n"])] = value
        else:
            out[key] = value
    return out | {name: mx.stack([found[n] for n in sorted(found)]) for name, found in parts.items()}


def _rewritten(key: str, value: mx.array, rewrites: tuple[Rewrite, ...]) -> list[tuple[str, mx.array]]:
    for rule in rewrites:
        if match := re.fullmatch(rule.pattern, key):
            return [(match.expand(target), part(value) if part else value) for target, part in rule.targets]
    return [(key, value)]
