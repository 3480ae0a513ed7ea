"""Models with recurrent and convolutional states generate in mlx-lm what transformers does, however they are fed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import torch
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, load_prompt_cache, make_prompt_cache, save_prompt_cache
from mlx_lm.utils import load_model

from mlxport.graph.write.port_weights import from_torch, port_weights
from mlxport.layouts.generated.generation_step import emit_step

PROMPTS = [[5, 40, 31, 7, 30, 22, 90, 14, 15, 16, 20], [9, 8, 7]]
TOKENS = 12
_SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8},  # states alone
    "falcon_h1": {  # keys beside states in every layer
        "intermediate_size": 48,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 2,
    },
    "qwen3_next": {  # layers of states, and layers of keys
        "intermediate_size": 48,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 0,
        "mlp_only_layers": [0, 1],
    },
    "nemotron_h": {  # and layers that remember nothing
        "intermediate_size": 48,
        "hybrid_override_pattern": "M-*",
        "num_hidden_layers": 3,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
    },
}
CACHES = {
    "mamba": [ArraysCache, ArraysCache],
    "falcon_h1": [CacheList, CacheList],
    "qwen3_next": [ArraysCache, KVCache],
    "nemotron_h": [ArraysCache, KVCache],
}


def _model(model_type: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **_SIZES | CONFIGS[model_type])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.5 if parameter.ndim > 1 else 0.1))
    return model


@pytest.fixture(scope="module")
def ported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokens that transformers generates, and the port as mlx-lm loads it, made once."""
    made: dict[str, tuple[list[list[int]], Any]] = {}

    def get(model_type: str) -> tuple[list[list[int]], Any]:
        if model_type not in made:
            model = _model(model_type)
            made[model_type] = (
                [_greedy(model, prompt) for prompt in PROMPTS],
                _loaded(model, tmp_path_factory.mktemp(model_type)),
            )
        return made[model_type]

    return get


def _greedy(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
    return list(made[0, len(prompt) :].tolist())


def _loaded(model: Any, folder: Path) -> Any:
    port = emit_step(model, model_type="ported")
    state = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    weights = port_weights(port.weights, port.folds, lambda name: from_torch(state[name].detach()))
    (folder / "model.py").write_text(port.source)
    (folder / "config.json").write_text(json.dumps({**port.fields, "model_type": "ported", "model_file": "model.py"}))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return load_model(folder, trust_remote_code=True)[0]


def _tokens(model: Any, prompt: list[int], **options: Any) -> list[int]:
    steps = generate_step(mx.array(prompt), model, max_tokens=TOKENS, **options)
    return [int(token) for (token, _), _ in zip(steps, range(TOKENS), strict=False)]


@pytest.mark.parametrize("model_type", CONFIGS)
def test_at_once_and_in_chunks(ported: Any, model_type: str) -> None:
    wanted, model = ported(model_type)
    assert [type(cache) for cache in make_prompt_cache(model)] == CACHES[model_type]
    for prompt, tokens in zip(PROMPTS, wanted, strict=True):
        assert len(set(tokens)) > 2
        assert _tokens(model, prompt) == tokens
        assert _tokens(model, prompt, prefill_step_size=4) == tokens


@pytest.mark.parametrize("model_type", CONFIGS)
def test_prompts_of_different_lengths_in_a_batch(ported: Any, model_type: str) -> None:
    wanted, model = ported(model_type)
    generator = BatchGenerator(model, stop_tokens=None)
    uids = generator.insert(PROMPTS, [TOKENS] * len(PROMPTS))
    found: dict[int, list[int]] = {uid: [] for uid in uids}
    while any(len(got) < TOKENS for got in found.values()):
        for response in generator.next()[1]:
            found[response.uid].append(int(response.token))
    assert [found[uid] for uid in uids] == wanted


@pytest.mark.parametrize("model_type", ["mamba", "falcon_h1"])
def test_a_saved_cache_goes_on(ported: Any, model_type: str, tmp_path: Path) -> None:
    wanted, model = ported(model_type)
    cache = make_prompt_cache(model)
    model(mx.array(PROMPTS[0][:-2])[None], cache=cache)
    save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    again = load_prompt_cache(str(tmp_path / "cache.safetensors"))
    assert _tokens(model, PROMPTS[0][-2:], prompt_cache=again) == wanted[0]


@pytest.mark.parametrize("model_type", CONFIGS)
def test_without_a_cache(ported: Any, model_type: str) -> None:
    wanted, model = ported(model_type)
    assert int(model(mx.array(PROMPTS[:1]))[0, -1].argmax()) == wanted[0][0]


def test_mamba_reads_as_that_of_mlx_lm() -> None:
    """No transposes between its layers, all of which are layers of MLX; one loop over layers and caches."""
    source = emit_step(_model("mamba"), model_type="ported").source
    mixer = source[source.index("class MambaMixer") : source.index("class MambaBlock")]
    assert "swapaxes" not in mixer and "transpose" not in mixer
    for name, made in (("conv1d", "nn.Conv1d"), ("dt_proj", "nn.Linear"), ("x_proj", "nn.Linear")):
        assert f"self.{name} = {made}(" in mixer
    assert "state_mask = create_ssm_mask(input_ids, cache[0])" in source
    assert "for layer, c in zip(self.layers, cache" in source
    assert "return [ArraysCache(size=2) for _ in self.layers]" in source
