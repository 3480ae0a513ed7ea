"""Text models that transformers saves by themselves, and layers beside them that predict further tokens."""

from __future__ import annotations

from typing import Any

import pytest

from mlxport.layouts.mlx_lm.architecture import mlx_lm_architecture
from mlxport.layouts.mlx_lm.normalize import normalize_config
from mlxport.source.part_names import TOWER, kinds_of_tower, predicts_further

TEXT: dict[str, Any] = {
    "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "vocab_size": 96, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32, "dtype": "bfloat16",
    "eos_token_id": 1, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "module"),
    [
        ("qwen3_5_text", "qwen3_5"),
        ("qwen3_5_moe_text", "qwen3_5_moe"),
        ("qwen2_5_vl_text", "qwen2_vl"),
        ("gemma4_unified_text", "gemma4"),
        ("gemma3_text", "gemma3_text"),
        ("llama", "llama"),
    ],
)
def test_the_module_that_runs_a_text_model(model_type: str, module: str) -> None:
    assert mlx_lm_architecture({"model_type": model_type}) == module


@pytest.mark.parametrize(
    ("whole", "part", "kind", "module"),
    [
        ("llava_next", "text_config", "mistral", "llama"),
        ("internvl_chat", "llm_config", "internlm2", "internlm2"),
        ("llava", "text_config", "llama", "mistral3"),
        ("llava", "text_config", "qwen2", "qwen2"),  # mlx-lm's is around a llama
        ("llama4", "text_config", "llama4_text", "llama4"),
        ("gemma3", "text_config", "gemma3_text", "gemma3"),
        ("colqwen2", "text_config", "qwen2_5_vl_text", "qwen2_vl"),
    ],
)
def test_the_module_that_runs_a_part_of_a_model(whole: str, part: str, kind: str, module: str) -> None:
    assert mlx_lm_architecture({"model_type": whole, part: {"model_type": kind}}) == module


@pytest.mark.parametrize("part", ["decoder", "text_encoder"])
def test_a_decoder_is_no_text_model_by_itself(part: str) -> None:
    with pytest.raises(ValueError, match="mlx-lm has no architecture 'vision-encoder-decoder'"):
        mlx_lm_architecture({"model_type": "vision-encoder-decoder", part: {"model_type": "gpt2", "vocab_size": 9}})


@pytest.mark.parametrize("model_type", ["hrm_text", "llama_text", "speech_to_text", "_text"])
def test_what_is_no_text_part_of_a_known_model_stays_unknown(model_type: str) -> None:
    with pytest.raises(ValueError, match="mlx-lm has no architecture"):
        mlx_lm_architecture({"model_type": model_type})


def test_a_text_model_becomes_the_text_part_and_says_so() -> None:
    done = normalize_config(TEXT)
    assert done.config["model_type"] == "qwen3_5" and done.config["text_config"]["model_type"] == "qwen3_5_text"
    assert {key: done.config[key] for key in ("eos_token_id", "dtype")} == {"eos_token_id": 1, "dtype": "bfloat16"}
    assert done.tied and "mlx-lm runs qwen3_5_text as that" in done.changes[0]
    assert normalize_config(done.config).config == done.config
    assert TEXT["model_type"] == "qwen3_5_text"


def test_quantization_stays_at_the_root() -> None:
    block = {"group_size": 64, "bits": 4}
    config = normalize_config(TEXT | {"quantization": block}).config
    assert config["quantization"] == block and "quantization" not in config["text_config"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.2.mlp.up_proj.weight", True),
        ("model.layers.1.mlp.up_proj.weight", False),
        ("mtp.layers.0.mlp.up_proj.weight", True),
        ("model.mtp_layers.0.norm.weight", True),
        ("vision_tower.layers.5.norm.weight", False),
        ("model.norm.weight", False),
    ],
)
def test_layers_that_predict_further_tokens(name: str, expected: bool) -> None:
    assert predicts_further(name, 2) is expected


@pytest.mark.parametrize(
    ("name", "declared", "same"),
    [
        ("visual", "vision_config", True),
        ("model.vision_tower", "vision_config", True),
        ("audio_tower", "vision_config", False),
        ("model.speech_encoder", "audio_config", True),
        ("model.decoder", "vision_config", False),
    ],
)
def test_names_that_speak_of_the_same_tower(name: str, declared: str, same: bool) -> None:
    assert (not kinds_of_tower(name).isdisjoint(kinds_of_tower(declared))) is same
    assert bool(TOWER.search(name)) is (name != "model.decoder")
