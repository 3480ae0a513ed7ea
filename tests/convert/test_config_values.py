"""Values that no model can have are one error that names the field, before anything is built from them."""

from __future__ import annotations

import math
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

from checkpoints import edit_json
from mlxport.errors import ConfigError
from mlxport.fit import plan_for
from mlxport.inspect.inspection import inspect
from mlxport.model.loaded import load_output
from mlxport.model_config import ModelConfig
from mlxport.quality.opened import open_output
from mlxport.run import AutoModelForCausalLM, load
from mlxport.source import open_checkpoint

WRONG = [
    ("vocab_size", -1, "at least 1"),
    ("vocab_size", 10**12, "a whole number from 1 to 100,000,000"),
    ("hidden_size", 1e12, "a whole number"),
    ("hidden_size", "64", "a whole number"),
    ("num_attention_heads", 0, "at least 1"),
    ("num_key_value_heads", 0, "at least 1"),
    ("num_hidden_layers", 10**9, "a whole number from 1 to 2,000"),
    ("num_hidden_layers", True, "a whole number"),
    ("num_hidden_layers", 2.0, "a whole number"),
    ("intermediate_size", -8, "at least 0"),
    ("num_local_experts", 10**9, "a whole number"),
    ("num_labels", 10**9, "a whole number from 0 to 200,000"),
    ("head_dim", "wide", "a whole number"),
    ("max_position_embeddings", 10**30, "at most"),
    ("rope_theta", "10000", "a number"),
    ("rope_theta", 0, "a number above 0"),
    ("rope_theta", True, "a number"),
    ("rope_theta", -1, "a number above 0"),
    ("rope_theta", math.inf, "a number above 0 and at most 1e+18"),
    ("rope_theta", 1e308, "a number above 0 and at most 1e+18"),
    ("rms_norm_eps", "1e-5", "a number"),
    ("rms_norm_eps", -1e-5, "a number of at least 0"),
    ("rms_norm_eps", math.inf, "a number of at least 0 and at most 1"),
    ("query_pre_attn_scalar", 0, "a number above 0"),
    ("logits_scaling", 0, "a number above 0"),
    ("rotary_pct", 0, "a number above 0"),
    ("embedding_multiplier", -math.inf, "a number"),
    ("num_key_value_heads", [2, -1], "each at least 1"),
    ("qk_rope_head_dim", -1, "at least 0"),
    ("mamba_d_conv", -4, "at least 0"),
    ("topk_group", -1, "at least 1"),
    ("routed_scaling_factor", math.inf, "a number that float32 holds"),
    ("layer_types", 0, "a list of names"),
    ("sliding_window", "wide", "a whole number"),
    ("max_position_embeddings", "x", "a number"),
    ("architectures", True, "a list of names"),
    ("architectures", [5], "a list of names"),
]
USES = {
    "generate": load,
    "auto": AutoModelForCausalLM.from_pretrained,
    "report": open_output,
    "verify": load_output,
    "convert": open_checkpoint,
    "inspect": inspect,
    "plan": lambda folder: plan_for(folder, device="M2 8GB"),
}


@pytest.mark.parametrize(("key", "value", "expected"), WRONG, ids=[f"{key}={value!r}" for key, value, _ in WRONG])
def test_each_is_named(key, value, expected):
    for config, where in (({key: value}, key), ({"text_config": {key: value}}, f"text_config.{key}")):
        with pytest.raises(ConfigError) as caught:
            ModelConfig({"model_type": "llama", **config}).check("config.json")
        assert f"config.json: {where} is {value!r}, expected {expected}" in caught.value.message


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [2.0, 4.0]}
WRONG_ROPE = [
    ({"type": "linear"}, "factor", 0, "a number above 0"),
    ({"type": "linear"}, "factor", -2, "a number above 0"),
    ({"type": "linear"}, "factor", math.inf, "a number above 0 and at most 1e+18"),
    ({"type": "linear"}, "factor", [1], "a number above 0, or one for each"),
    ({"type": "linear"}, "factor", None, "a number above 0, which 'linear' computes with"),
    ({"factor": 2.0}, "rope_type", None, "the name of a kind"),
    ({"factor": 2.0}, "rope_type", 1, "the name of a kind"),
    (YARN, "factor", 0, "a number above 0"),
    (YARN, "original_max_position_embeddings", 0, "a number above 0"),
    (YARN, "original_max_position_embeddings", None, "a number above 0, which 'yarn' computes with"),
    (YARN, "original_max_position_embeddings", [64], "a number above 0"),
    (YARN, "original_max_position_embeddings", "64", "a number above 0"),
    (YARN, "beta_fast", 0, "a number above 0"),
    (YARN, "beta_slow", -1, "a number above 0"),
    (YARN, "attention_factor", -0.5, "a number above 0"),
    (YARN, "mscale", -1, "a number of at least 0"),
    (LLAMA3, "rope_theta", [1], "a number above 0, or one for each of the 2 layers"),
    (LLAMA3, "low_freq_factor", 0, "a number above 0"),
    (LLAMA3, "high_freq_factor", None, "a number above 0, which 'llama3' computes with"),
    (LLAMA3, "high_freq_factor", 1.0, "more than low_freq_factor, which is 1.0"),
    (LLAMA3, "partial_rotary_factor", 0, "a number above 0"),
    (LLAMA3, "partial_rotary_factor", -0.5, "a number above 0"),
    (LONGROPE, "short_factor", [1.0, 0], "a list, each a number above 0"),
    (LONGROPE, "long_factor", [1.0, math.inf], "a list, each a number above 0 and at most 1e+18"),
    (LONGROPE, "short_factor", 2.0, "a list, each a number above 0"),
    (LONGROPE, "long_factor", None, "a list, each a number above 0, which 'longrope' computes with"),
    (LONGROPE, "short_factor", [1.0], "as many numbers as long_factor has, 2; it has 1"),
]


@pytest.mark.parametrize(("settings", "key", "value", "expected"), WRONG_ROPE)
def test_settings_of_rope_wherever_they_are(settings, key, value, expected):
    """At the root as transformers 4 writes them, nested as 5 does, for one kind of layer, and in a part."""
    rope = {**settings, key: value}
    for path in ("rope_scaling", "rope_parameters", "rope_parameters.sliding_attention", "text_config.rope_scaling"):
        values: Any = rope
        for name in reversed(path.split(".")):
            values = {name: values}
        with pytest.raises(ConfigError) as caught:
            ModelConfig({"model_type": "llama", "num_hidden_layers": 2, **values}).check("config.json")
        assert f"config.json: {path}.{key} is {value!r}, expected {expected}" in caught.value.message


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 10**9), ("num_hidden_layers", 1000), ("hidden_size", 1e12), ("rope_theta", "1")],
)
def test_whoever_reads_the_config(use, key, value, converted, tmp_path):
    folder = Path(shutil.copytree(converted, tmp_path / "out"))
    edit_json(folder / "config.json", **{key: value})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=f"{key} is"):
        USES[use](folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


@pytest.mark.parametrize(
    "config",
    [{"rope_parameters": {"full_attention": {"rope_theta": "1"}}}, {"rope_scaling": {"factor": "8"}},
     {"vision_config": {"num_hidden_layers": 10**9}}, {"a": {"b": {"c": {"vocab_size": -1}}}}],
    ids=str,
)  # fmt: skip
def test_parts_within(config):
    with pytest.raises(ConfigError, match="expected"):
        ModelConfig(config).check("config.json")


@pytest.mark.parametrize(
    "config",
    [{"num_key_value_heads": [1, 2], "intermediate_size": [8, 8]}, {"head_dim": None, "rope_theta": None},
     {"vision_config": {"num_hidden_layers": 0}}, {"max_position_embeddings": -1}, {"rope_scaling": {"factor": 8}},
     {"rope_theta": 1e7, "time_step_limit": [0.0, float("inf")]}, {"rope_theta": {"full": 1e6}}, {"n_inner": None},
     {"rope_theta": [1e4, 1e6], "num_hidden_layers": 2}, {"rope_theta": 1e11}, {"vision_config": {"chunk_size": -1}},
     {"rope_scaling": {**YARN, "beta_fast": None, "mscale": 0, "attention_factor": None}}, {"sliding_window": -1},
     {"chunk_size": -1, "head_dim": 0},
     {"swiglu_limit": math.inf, "mask_value": -3.4028235e38},
     {"rope_parameters": {"full_attention": LLAMA3, "sliding_attention": None}}, {"rope_scaling": {"factor": 0.5}}],
    ids=str,
)  # fmt: skip
def test_what_some_model_has_is_left_alone(config):
    assert ModelConfig(config).check("config.json") is None


def test_configs_of_many_kinds_pass():
    """As transformers builds them by default."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for name in ("llama", "gemma3", "mamba2", "qwen3_moe", "deepseek_v3", "whisper", "t5", "clip", "falcon_h1", "lfm2"):
        assert ModelConfig(CONFIG_MAPPING[name]().to_dict()).check(name) is None


@pytest.mark.parametrize("use", USES)
def test_a_config_that_nests_too_deep(use, converted, tmp_path):
    folder = Path(shutil.copytree(converted, tmp_path / "out"))
    deep: dict = {}
    for _ in range(300):
        deep = {"a": deep}
    edit_json(folder / "config.json", rope_scaling=deep)
    with pytest.raises(ConfigError, match="nests"):
        USES[use](folder)
