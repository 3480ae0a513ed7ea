"""Configs for mlx-lm: rules on plain dicts, then parity with transformers on tiny random models."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from small_configs import SIZES, YARN, assert_parity, new_style

from mlxport.errors import ConfigError, UnsupportedError
from mlxport.layouts.mlx_lm.architecture import mlx_lm_architecture
from mlxport.layouts.mlx_lm.normalize import ConfigRefused, normalize_config
from mlxport.layouts.mlx_lm.rope_settings import yarn_rounding

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def old_style(model_type: str, scaling: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        **SIZES,
        "rope_theta": 700.0,
        "rope_scaling": scaling,
        "torch_dtype": "bfloat16",
        "rms_norm_eps": 1e-6,
        **fields,
    }


@pytest.mark.parametrize(
    "model_type", ["llama", "qwen2", "qwen3_moe", "olmo2", "cohere", "granite", "stablelm", "glm4"]
)
def test_rope_theta_comes_to_the_root(model_type: str) -> None:
    done = normalize_config(new_style(model_type))
    assert done.config["rope_theta"] == 700.0
    assert done.config["rope_parameters"]["rope_theta"] == 700.0
    assert any("rope_theta" in change for change in done.changes)


@pytest.mark.parametrize(
    "scaling", [LLAMA3, YARN, {"rope_type": "linear", "factor": 2.0}], ids=lambda s: s["rope_type"]
)
def test_scaling_comes_to_the_root_in_both_spellings(scaling: dict[str, Any]) -> None:
    found = normalize_config(new_style("llama", scaling)).config["rope_scaling"]
    assert found["type"] == found["rope_type"] == scaling["rope_type"]
    assert scaling.items() <= found.items()
    assert "rope_theta" not in found


def test_theta_is_the_class_default_where_the_file_omits_it() -> None:
    config = new_style("cohere")
    del config["rope_parameters"]["rope_theta"]
    assert normalize_config(config).config.get("rope_theta", 8e6) == normalize_config(config).config["rope_theta"]


@pytest.mark.parametrize(
    ("model_type", "field", "expected"),
    [
        ("llama", "tie_word_embeddings", False),
        ("llama", "rms_norm_eps", 1e-6),
        ("gpt2", "n_ctx", 1024),
        ("gpt_neox", "rotary_emb_base", 700.0),
        ("gpt_neox", "rotary_pct", 0.25),
        ("qwen3_moe", "norm_topk_prob", False),
        ("qwen3_moe", "head_dim", 8),
        ("phi", "partial_rotary_factor", 0.5),
        ("lfm2", "block_dim", 32),
        ("nemotron_h", "time_step_limit", [0.001, {"__float__": "Infinity"}]),
    ],
)
def test_fields_that_transformers_omits_are_filled(model_type: str, field: str, expected: Any) -> None:
    config = new_style(model_type, intermediate_size=128) if model_type != "gpt2" else {"model_type": "gpt2"}
    if model_type == "lfm2":
        config["layer_types"] = ["conv", "full_attention"]
    if model_type == "nemotron_h":
        config = {"model_type": "nemotron_h", "hidden_size": 32}
    assert normalize_config(config).config[field] == expected


def test_sliding_layers_have_a_theta_of_their_own() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 700.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    }
    text = {**SIZES, "model_type": "gemma3_text", "num_hidden_layers": 6, "layer_types": kinds, "rope_parameters": rope}
    whole = normalize_config({"model_type": "gemma3", "text_config": text, "architectures": ["Gemma3Model"]}).config
    for found in (normalize_config(text).config, whole["text_config"]):
        assert (found["rope_theta"], found["rope_local_base_freq"]) == (700.0, 300.0)
        assert found["rope_scaling"]["factor"] == 8.0
        assert found["sliding_window_pattern"] == 6
    assert whole["vocab_size"] == SIZES["vocab_size"]


OLD: list[dict[str, Any]] = [
    old_style("llama", {"type": "linear", "factor": 2.0}),
    old_style("llama", LLAMA3),
    old_style("qwen2"),
    old_style("mistral", sliding_window=None),
    old_style("qwen3", head_dim=8),
    old_style("granite", attention_multiplier=0.1, logits_scaling=2.0),
    old_style("phi", partial_rotary_factor=0.4),
]


@pytest.mark.parametrize("config", OLD, ids=lambda c: c["model_type"])
def test_old_style_keeps_its_values(config: dict[str, Any]) -> None:
    before = copy.deepcopy(config)
    found = normalize_config(config).config
    assert config == before
    for key, value in before.items():
        if isinstance(value, dict):
            assert value.items() <= found[key].items()
        else:
            assert found[key] == value


@pytest.mark.parametrize(
    "config",
    [
        *OLD,
        new_style("llama", LLAMA3),
        new_style("llama", {**YARN, "attention_factor": 1.3}),
        new_style("deepseek_v2"),
        new_style("minicpm3", tie_word_embeddings=False, qk_rope_head_dim=8),
        new_style("granitemoehybrid", mamba_n_heads=8, mamba_d_head=8),
        new_style("exaone4", layer_types=["sliding_attention", "full_attention"], sliding_window=8),
        {"model_type": "gpt2"},
        {"model_type": "nemotron_h", "hidden_size": 32},
    ],
    ids=lambda c: c["model_type"],
)
def test_normalizing_twice_changes_nothing(config: dict[str, Any]) -> None:
    once = normalize_config(config)
    again = normalize_config(json.loads(json.dumps(once.config)))
    assert again.config == once.config
    assert again.changes == ()


def test_attention_factor_becomes_a_scale() -> None:
    import math

    found = normalize_config(new_style("llama", {**YARN, "attention_factor": 1.3})).config["rope_scaling"]
    assert 0.1 * found["mscale"] * math.log(4.0) + 1.0 == pytest.approx(1.3)
    assert found["mscale_all_dim"] == 0


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (new_style("llama", hidden_act="gelu"), "computes silu; hidden_act is 'gelu'"),
        (new_style("gemma", hidden_act="relu"), "computes gelu; hidden_act is 'relu'"),
        (new_style("starcoder2", {"rope_type": "linear", "factor": 2.0}, sliding_window=None), "'linear'"),
        (new_style("glm", {"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (
            new_style("qwen3_next", {"rope_type": "proportional", "partial_rotary_factor": 0.5}, num_hidden_layers=4),
            "'proportional'",
        ),
        (new_style("cohere", tie_word_embeddings=False), "tie_word_embeddings"),
        (
            dict(model_type="qwen", **SIZES, kv_channels=16, rotary_emb_base=1e6),
            "rotary_emb_base 10000; the config says",
        ),
        (new_style("olmo"), "ai2-olmo"),
        (new_style("minimax"), "MiniMax-M2"),
        (new_style("jamba", num_experts=4, num_hidden_layers=8), "num_experts"),
        (new_style("bert"), "no architecture 'bert'"),
        (new_style("../llama"), "no architecture"),
        (new_style("base"), "no architecture 'base'"),
        ({"hidden_size": 3}, "names no model_type"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) and "model_type" in value else None,
)
def test_what_mlx_lm_would_ignore_is_refused(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigRefused) as caught:
        normalize_config(config)
    assert reason in caught.value.reason
    assert caught.value.hint
    assert isinstance(caught.value, (ValueError, UnsupportedError))


def test_ignored_windows_limit_the_length() -> None:
    done = normalize_config(new_style("mistral", sliding_window=16))
    assert done.exact_tokens == 16 and "16" in done.warnings[0]
    assert normalize_config(new_style("mistral", sliding_window=None)).exact_tokens is None
    assert normalize_config(new_style("mistral", sliding_window=256)).exact_tokens is None


QWEN = dict(model_type="qwen", **SIZES, kv_channels=16, layer_norm_epsilon=1e-6, no_bias=True)


@pytest.mark.parametrize(
    ("fields", "exact", "said"),
    [
        (dict(seq_length=64), 64, "use_dynamic_ntk and use_logn_attn"),
        (dict(seq_length=64, use_dynamic_ntk=False), 64, "use_logn_attn"),
        (dict(use_logn_attn=False), 8192, "use_dynamic_ntk"),
        (dict(seq_length=64, use_dynamic_ntk=False, use_logn_attn=False), None, ""),
    ],
)
def test_attention_that_changes_with_the_length_limits_it(fields: dict[str, Any], exact: int | None, said: str) -> None:
    done = normalize_config({**QWEN, **fields})
    assert done.exact_tokens == exact and [said in warning for warning in done.warnings] == [True] * bool(said)


def test_longrope_takes_the_factors_of_the_asked_length() -> None:
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.5] * 4,
        "long_factor": [3.0] * 4,
        "original_max_position_embeddings": 64,
    }
    config = new_style("phi3", rope, original_max_position_embeddings=64, sliding_window=None, pad_token_id=0)
    short, long = normalize_config(config), normalize_config(config, long_context=True)
    assert short.config["rope_scaling"]["long_factor"] == [1.5] * 4
    assert long.config["rope_scaling"]["long_factor"] == [3.0] * 4
    assert (short.exact_tokens, long.exact_tokens) == (64, None)


def test_another_gelu_is_said() -> None:
    near = normalize_config(new_style("starcoder2", hidden_act="gelu_pytorch_tanh", sliding_window=None))
    assert near.approximate and not near.near_attention
    assert not normalize_config(new_style("starcoder2", hidden_act="gelu", sliding_window=None)).approximate


@pytest.mark.parametrize(
    ("model_type", "module"), [("mistral", "llama"), ("falcon_mamba", "mamba"), ("qwen3", "qwen3")]
)
def test_architecture_is_the_module_that_loads(model_type: str, module: str) -> None:
    assert mlx_lm_architecture({"model_type": model_type}) == module


PARITY: list[dict[str, Any]] = [
    new_style("llama"),
    new_style("llama", LLAMA3, tie_word_embeddings=True),
    new_style("llama", {**YARN, "attention_factor": 1.3}),
    new_style("mistral", sliding_window=None),
    new_style("qwen2"),
    new_style("qwen3", head_dim=16),
    new_style("phi", {"partial_rotary_factor": 0.5}),
    new_style("cohere"),
    new_style("olmo2"),
    new_style("granite", attention_multiplier=0.3, logits_scaling=2.0, embedding_multiplier=3.0),
    new_style("glm4", {"partial_rotary_factor": 0.5}, head_dim=8, pad_token_id=0),
    new_style("smollm3", pad_token_id=0),
    {"model_type": "gpt2", "vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    new_style("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8),
]


@pytest.mark.parametrize("config", PARITY, ids=lambda c: c["model_type"])
def test_logits_equal_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    assert_parity(config, tmp_path)


LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
}  # fmt: skip
ODD: list[dict[str, Any]] = [
    {"sliding_window": [1]},
    {"dtype": [None]},
    {"num_attention_heads": 0},
    {"rms_norm_eps": "x"},
    {"rope_parameters": 7},
    {"rope_parameters": {"rope_type": "linear"}},
    {"num_hidden_layers": 2**70},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.5}},
    {"rope_parameters": {**LONGROPE, "short_factor": [1.0] * 3, "long_factor": [1.0] * 3}},
    {"rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.5}},
    {"head_dim": [1]},
    {"quantization_config": 7},
]


@pytest.mark.parametrize("change", ODD, ids=str)
def test_odd_values_are_one_clear_error(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expect|no model has"):
        normalize_config({**new_style("llama"), **change})


@pytest.mark.parametrize("change", [{"architectures": True}, {"architectures": [7]}, {"use_cache": "x"}], ids=str)
def test_what_mlx_lm_does_not_read_is_left_alone(change: dict[str, Any]) -> None:
    assert normalize_config({**new_style("llama", rms_norm_eps=1e-6), **change}).config["rope_theta"] == 700.0


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_that_sees_nothing_is_refused_where_layers_slide(window: int) -> None:
    for config in (new_style("mistral"), new_style("gemma2", head_dim=8)):
        with pytest.raises(ConfigError, match=f"sliding_window is {window}, expected at least 1, or null"):
            normalize_config({**config, "sliding_window": window})
    off = new_style("qwen2", sliding_window=window, use_sliding_window=False)
    assert normalize_config(off).exact_tokens is None


def test_null_settings_of_rope_are_absent_ones_for_both(tmp_path: Path) -> None:
    nulls = {"beta_fast": None, "beta_slow": None, "attention_factor": None, "mscale": None}
    assert_parity(new_style("llama", {**YARN, **nulls}), tmp_path)
    old = {"model_type": "llama", **SIZES, "rope_scaling": {"type": "yarn", "factor": 4.0, **nulls}}
    assert None not in normalize_config(old).config["rope_scaling"].values()


def test_proportional_rope_keeps_its_share_of_a_head(tmp_path: Path) -> None:
    assert_parity(new_style("llama", {"rope_type": "proportional", "partial_rotary_factor": 0.5}), tmp_path)


def test_rounded_yarn_is_said_with_its_size() -> None:
    done = normalize_config(new_style("llama", {**YARN, "truncate": False}))
    assert done.approximate and done.near_attention and "radians a position" in done.warnings[0]
    assert not normalize_config(new_style("llama", YARN)).approximate
    main = {"rope_theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 4096}
    angles = [(8, 18), (8.0927, 17.398)]  # correction range of gpt-oss, rounded and as it is
    ramps = [[min(max((i - low) / (high - low), 0), 1) for i in range(32)] for low, high in angles]
    off = [150000 ** (-i / 32) * abs(a - b) * (1 - 1 / 32) for i, (a, b) in enumerate(zip(*ramps, strict=True))]
    assert yarn_rounding(main, 64) == pytest.approx(max(off), rel=1e-2)
