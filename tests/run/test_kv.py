from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import DEFAULT_QUANTIZED_KV_START, generate_step
from mlx_lm.models.cache import QuantizedKVCache, RotatingKVCache, make_prompt_cache

from mlxport.errors import ConfigError, QuantizationError, UsageError
from mlxport.run import AutoModelForCausalLM, KVQuant, generate, load
from mlxport.run.kv import check_model, chosen_kv, make_kv, prompt_cache, recorded_kv

SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 96,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}  # fmt: skip
MODELS = {
    "narrow heads": {**SMALL, "model_type": "llama"},
    "experts": {
        **SMALL, "model_type": "qwen3_moe", "head_dim": 96, "num_experts": 4, "num_experts_per_tok": 2,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 64, "norm_topk_prob": True,
    },
    "latent cache": {
        **SMALL, "model_type": "deepseek_v3", "num_key_value_heads": 4, "moe_intermediate_size": 64,
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "kv_lora_rank": 64, "q_lora_rank": 64,
        "qk_rope_head_dim": 32, "v_head_dim": 32, "qk_nope_head_dim": 32, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
        "rope_scaling": None, "attention_bias": False, "moe_layer_freq": 1, "routed_scaling_factor": 1.0,
    },
    "state space": {
        "model_type": "mamba2", "num_heads": 8, "head_dim": 16, "vocab_size": 96, "hidden_size": 64,
        "intermediate_size": 128, "state_size": 16, "num_hidden_layers": 2, "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4, "n_groups": 1, "use_bias": False, "use_conv_bias": True, "tie_word_embeddings": False,
        "time_step_limit": [0.0, 100.0], "time_step_rank": 4, "ssm_state_size": 16, "max_position_embeddings": 512,
    },
    "sinks": {
        **SMALL, "model_type": "gpt_oss", "head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2,
        "sliding_window": 16, "rope_scaling": None, "layer_types": ["sliding_attention", "full_attention"],
    },
}  # fmt: skip


def build(config: dict[str, Any]) -> Any:
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(config)
    return model_class(args_class.from_dict(config))


def recording(folder: Path, target: Path, entry: object) -> Path:
    shutil.copytree(folder, target)
    (target / "mlxport.json").write_text(json.dumps({"generation": entry}))
    return target


def answer_of_mlx_lm(folder: Path, prompt: str, count: int, **options: int) -> list[int]:
    loaded = load(folder)
    tokens = mx.array(loaded.tokenizer.encode(prompt))
    return [int(token) for token, _ in generate_step(tokens, loaded.model, max_tokens=count, **options)]


def test_the_answer_is_that_of_mlx_lm_with_the_same_cache(wide):
    options = {"kv_bits": 2, "kv_group_size": 32, "quantized_kv_start": 0}
    result = generate(wide, "some text", max_tokens=20, ignore_chat_template=True, **options)
    assert list(result.tokens) == answer_of_mlx_lm(wide, "some text", 20, **options)
    plain = generate(wide, "some text", max_tokens=20, ignore_chat_template=True)
    assert list(plain.tokens) == answer_of_mlx_lm(wide, "some text", 20) != list(result.tokens)


def test_the_folder_says_what_is_used_unless_told_otherwise(wide, tmp_path):
    entry = {"kv_bits": 2, "kv_group_size": 32, "quantized_kv_start": 0}
    folder = recording(wide, tmp_path / "model", entry)
    ask = {"max_tokens": 20, "ignore_chat_template": True}
    assert load(folder).kv == KVQuant(2, 32, 0)
    recorded = generate(folder, "some text", **ask).tokens
    assert recorded == generate(wide, "some text", **ask, **entry).tokens
    assert generate(folder, "some text", **ask, kv_bits="none").tokens == generate(wide, "some text", **ask).tokens
    eight = generate(folder, "some text", **ask, kv_bits=8).tokens
    assert eight == generate(wide, "some text", **ask, **{**entry, "kv_bits": 8}).tokens != recorded

    ids = np.array([load(folder).tokenizer.encode("some text")])
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generate(ids, max_new_tokens=20)[0, ids.shape[1] :].tolist() == list(recorded)
    without = model.generate(ids, max_new_tokens=20, kv_bits="none")[0, ids.shape[1] :].tolist()
    assert without == list(generate(wide, "some text", **ask).tokens)


def test_chat_keeps_a_quantized_cache_from_turn_to_turn(wide):
    from mlxport.run import ChatSession, Sampling

    session = ChatSession(load(wide), Sampling(max_tokens=8), kv=KVQuant(8, 32, 0))
    session.ask("hello")
    second = session.ask("again")
    assert second.cached_tokens > 0
    assert all(isinstance(cache, QuantizedKVCache) and cache.bits == 8 for cache in session._cache or [])


def test_windows_stay_and_the_rest_is_quantized(windows):
    kv = KVQuant(8, 32, 0)
    loaded = load(windows)
    with pytest.raises(NotImplementedError):  # what mlx-lm does, in the middle of the answer
        answer_of_mlx_lm(windows, "some text", 4, **kv.options())
    (remark,) = check_model(loaded.model, kv, "gemma3_text")
    assert "2 of 4 caches stay unquantized" in remark and "RotatingKVCache" in remark
    cache = prompt_cache(loaded.model, kv)
    ids = mx.array(loaded.tokenizer.encode("a text longer than the window of sixteen tokens"))
    steps = generate_step(ids, loaded.model, max_tokens=1, prompt_cache=cache, **kv.options())
    ours, plain = (mx.exp(next(found)[1]) for found in (steps, generate_step(ids, loaded.model, max_tokens=1)))
    assert 0 < mx.abs(ours - plain).max().item() < 0.05
    kinds = [type(item).__mro__ for item in cache]
    assert sum(QuantizedKVCache in kind for kind in kinds) == 2 == sum(RotatingKVCache in kind for kind in kinds)
    warnings: list[str] = []
    generate(loaded, "hi", max_tokens=2, kv_bits=8, kv_group_size=32, on_warning=warnings.append)
    assert warnings == [remark]


@pytest.mark.parametrize(
    ("model", "part", "hint"),
    [
        ("narrow heads", "keys or values of a head have 16 numbers", "no group size fits"),
        ("experts", "keys or values of a head have 96 numbers", "choose 32"),
        ("state space", "it has 2 ArraysCache", "leave it out"),
        ("latent cache", "have 32 numbers", "choose 32"),
        ("sinks", "does not support attention sinks", "leave it out"),
    ],
)
def test_what_cannot_be_quantized_is_refused_by_name(model, part, hint):
    with pytest.raises(QuantizationError, match=part) as caught:
        check_model(build(MODELS[model]), KVQuant(4, 64), model)
    assert hint in caught.value.hint


def test_experts_with_heads_that_it_divides():
    assert check_model(build(MODELS["experts"]), KVQuant(4, 32), "qwen3_moe") == ()


def test_a_check_evaluates_nothing_and_leaves_the_model(wide):
    model = load(wide).model
    assert check_model(model, KVQuant(8, 32), "llama") == ()
    assert [type(cache) for cache in prompt_cache(model, None)] == [type(cache) for cache in make_prompt_cache(model)]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((7,), "--kv-bits 7 does not exist"),
        ((True,), "--kv-bits True does not exist"),
        ((8, 48), "--kv-group-size 48 does not exist"),
        ((8, 64, -1), "--quantized-kv-start -1"),
        ((None, 64), "--kv-group-size 64 has no effect without --kv-bits"),
        ((None, None, 0), "--quantized-kv-start 0 has no effect"),
        (("none", 64), "--kv-group-size 64 has no effect"),
        (("eight",), "--kv-bits 'eight' is no number"),
    ],
)
def test_wrong_settings(arguments, part):
    with pytest.raises(UsageError, match=part):
        chosen_kv(None, *arguments)


def test_defaults_are_those_of_mlx_lm():
    assert make_kv(None) is None
    kv = make_kv(8)
    expected = {"kv_bits": 8, "kv_group_size": 64, "quantized_kv_start": DEFAULT_QUANTIZED_KV_START}
    assert kv is not None and kv.options() == expected


@pytest.mark.parametrize("entry", [[], {"kv_bits": 8}, {"kv_bits": 9, "kv_group_size": 64, "quantized_kv_start": 0},
                                   {"kv_bits": "8", "kv_group_size": 64, "quantized_kv_start": 0}])  # fmt: skip
def test_a_record_with_something_else_is_refused(wide, tmp_path, entry):
    with pytest.raises(ConfigError, match="mlxport.json, generation"):
        recorded_kv(recording(wide, tmp_path / "model", entry))
