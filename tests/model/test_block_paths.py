"""The blocks of several architectures are found by their paths."""

from __future__ import annotations

import pytest
from mlx_lm.utils import _get_classes

from mlxport.model.block_paths import block_number, block_of, blocks, is_block

SMALL = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "rms_norm_eps": 1e-5}
ROPE = {"num_key_value_heads": 2, "rope_theta": 1e4, "max_position_embeddings": 64, "tie_word_embeddings": False}
MODELS = {
    "llama": ({"model_type": "llama", **SMALL, **ROPE, "num_hidden_layers": 12}, "model.layers", 12),
    "gpt2": (
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "n_ctx": 64,
         "layer_norm_epsilon": 1e-5, "vocab_size": 32}, "model.h", 3,
    ),
    "mamba": (
        {"model_type": "mamba", "vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "state_size": 4,
         "num_hidden_layers": 3, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 2},
        "backbone.layers", 3,
    ),
    "mixtral": (
        {"model_type": "mixtral", **SMALL, **ROPE, "num_hidden_layers": 2, "num_local_experts": 4,
         "num_experts_per_tok": 2}, "model.layers", 2,
    ),
    "gpt_neox": (
        {"model_type": "gpt_neox", "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 64, "layer_norm_eps": 1e-5, "rotary_emb_base": 10000,
         "rotary_pct": 0.25}, "model.h", 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_blocks_of_an_architecture(name):
    config, owner, count = MODELS[name]
    model_class, args_class = _get_classes(config)
    found = blocks(model_class(args_class.from_dict(config)))
    assert [path for path, _ in found] == [f"{owner}.{number}" for number in range(count)]
    assert len({type(module) for _, module in found}) == 1


@pytest.mark.parametrize(
    ("path", "block", "number"),
    [
        ("model.layers.3", "model.layers.3", 3),
        ("model.layers.11.mlp.experts.5.up_proj.weight", "model.layers.11", 11),
        ("0", "0", 0),
        ("0.weight", "0", 0),
        ("model.embed_tokens.weight", None, None),
        ("lm_head", None, None),
        ("", None, None),
        ("model.block1.conv2d", None, None),
    ],
)
def test_the_block_of_a_path(path, block, number):
    assert (block_of(path), block_number(path)) == (block, number)
    assert is_block(path) == (block == path)
