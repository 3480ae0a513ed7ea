"""A size that config.json leaves out is named where the weights do not fit what is taken for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_models import CONFIGS, SIZES, open_target, save_model, save_tokenizer
from transformers import FalconH1Config, FalconH1ForCausalLM

from mlxport.errors import ConfigError, UnsupportedError, WeightsError
from mlxport.layouts.mlx_lm.opening import check_supported
from mlxport.layouts.mlx_lm.unsaid_sizes import in_question, unsaid_size
from mlxport.source import open_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama, whose config gives all that transformers saves."""
    return save_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def falcon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid: its mixer computes with more fields than sizes of tensors."""
    folder = tmp_path_factory.mktemp("falcon")
    config = FalconH1Config(
        **SIZES, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16, mamba_n_groups=1, pad_token_id=0
    )
    FalconH1ForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    ("key", "taken"),
    [
        ("hidden_size", 4096),
        ("intermediate_size", 11008),
        ("num_attention_heads", 32),
        ("num_hidden_layers", 32),
        ("num_key_value_heads", 4),
        ("vocab_size", 32000),
    ],
)
def test_the_size_that_is_not_said_is_named_with_what_is_taken(saved: Path, tmp_path: Path, key: str, taken: int):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    values = json.loads((saved / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({name: value for name, value in values.items() if name != key}))
    with pytest.raises(WeightsError) as caught:
        open_target(open_checkpoint(tmp_path))
    assert f"config.json does not say {key}, for which {taken} is taken" in caught.value.message
    assert caught.value.hint == f"get config.json again from where the weights are from, or add {key} to it"


def _config(architecture: str, *absent: str, **changes: object) -> dict[str, object]:
    values = {**CONFIGS[architecture]().to_dict(), **changes}
    return {name: value for name, value in values.items() if name not in absent}


@pytest.mark.parametrize(
    ("config", "shapes", "named"),
    [
        (_config("llama"), ((64, 512), (64, 64)), None),
        (_config("llama"), (), None),
        (_config("qwen2", "max_window_layers"), (), None),  # no names depend on these
        (_config("mixtral", "num_experts_per_tok"), (), None),
        (_config("mixtral", "num_hidden_layers"), (), "num_hidden_layers"),
        (_config("gpt_neox", "num_hidden_layers"), (), "num_hidden_layers"),
        # what has been said under another name is said
        ({"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2}, ((96, 64), (97, 64)), None),
        ({"model_type": "gpt2", "hidden_size": 64, "n_layer": 2, "n_head": 2}, ((768, 64), (64, 64)), None),
        ({"model_type": "gpt2", "n_layer": 2, "n_head": 2}, ((50257, 768), (50257, 64)), "n_embd or hidden_size"),
        (_config("qwen3_moe", "num_local_experts"), ((128, 64), (4, 64)), "num_local_experts or num_experts"),
        (_config("deepseek_v3", "q_lora_rank"), ((1536, 64), (64, 64)), "q_lora_rank"),
        (_config("phi3", "num_attention_heads"), ((72, 64), (128, 64)), "num_attention_heads"),
        (_config("deepseek_v3", "first_k_dense_replace"), (), "first_k_dense_replace"),
        (_config("llama", vocab_size=None), ((32000, 64), (96, 64)), "vocab_size"),
        # no class of transformers knows this one
        ({"model_type": "minicpm", "hidden_size": 64, "num_experts": None}, ((64, 48), (64, 64)), None),
    ],
)
def test_only_what_is_not_said_and_explains_the_shape_is_named(config, shapes, named):
    found = unsaid_size(config, *shapes)
    assert (found and found.name) == named


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mamba_d_conv": None}, "config.json gives null as mamba_d_conv"),
        ({"mamba_n_groups": None}, "config.json gives null as mamba_n_groups"),
        ({"embedding_multiplier": None}, "config.json gives null as embedding_multiplier"),
        ({"mamba_d_conv": 0}, "config.json gives 0 as mamba_d_conv"),
        ({"intermediate_size": 0}, "config.json gives 0 as intermediate_size"),
        ("mamba_d_state", "config.json does not say mamba_d_state, for which 256 is taken"),
    ],
)
def test_what_is_null_or_absent_is_named_where_the_code_of_mlx_lm_fails_on_it(
    falcon: Path, tmp_path: Path, change, named
):
    shutil.copytree(falcon, tmp_path, dirs_exist_ok=True)
    values = json.loads((falcon / "config.json").read_text())
    values = {**values, **change} if isinstance(change, dict) else {k: v for k, v in values.items() if k != change}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UnsupportedError, match="mlx-lm cannot load") as caught:
        open_target(open_checkpoint(tmp_path))
    assert named in caught.value.message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mamba_d_head": None}, "config.json gives null as mamba_d_head"),
        ({"mamba_n_heads": 0}, "config.json gives 0 as mamba_n_heads"),
        ("mamba_d_ssm", "config.json does not say mamba_d_ssm, for which 1024 is taken"),
    ],
)
def test_what_transformers_refuses_in_words_of_its_own_is_named(falcon: Path, change, named):
    values = json.loads((falcon / "config.json").read_text())
    values = {**values, **change} if isinstance(change, dict) else {k: v for k, v in values.items() if k != change}
    with pytest.raises(ConfigError) as caught:
        check_supported(values)
    assert named in caught.value.message and "chunk_size_feed_forward" not in caught.value.message


def test_a_token_that_is_none_of_the_vocabulary_is_named_where_nobody_says_it():
    config = {name: value for name, value in CONFIGS["phi3"]().to_dict().items() if name != "pad_token_id"}
    assert in_question(config) == "config.json does not say pad_token_id, for which 32000 is taken"
    assert "token" not in in_question({**config, "pad_token_id": 0})
