"""Names and layouts that mlx-lm's sanitize does not know, on arrays small enough to read."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlxport.layouts.mlx_lm.weight_repairs import ignored_weights, prepare_weights


def numbered(*shape: int) -> mx.array:
    return mx.arange(float(mx.prod(mx.array(shape)).item())).reshape(*shape)


def test_interleaved_experts_are_split_and_turned() -> None:
    name = "model.layers.0.mlp.experts"
    weights = {
        f"{name}.gate_up_proj": numbered(2, 3, 4),
        f"{name}.gate_up_proj_bias": numbered(2, 4),
        f"{name}.down_proj": numbered(2, 2, 3),
        f"{name}.down_proj_bias": numbered(2, 3),
    }
    out = prepare_weights(weights, {"model_type": "gpt_oss"})
    assert {key: value.shape for key, value in out.items()} == {
        f"{name}.gate_proj.weight": (2, 2, 3),
        f"{name}.up_proj.weight": (2, 2, 3),
        f"{name}.gate_proj.bias": (2, 2),
        f"{name}.up_proj.bias": (2, 2),
        f"{name}.down_proj.weight": (2, 3, 2),
        f"{name}.down_proj.bias": (2, 3),
    }
    assert out[f"{name}.up_proj.weight"][1, 1, 2].item() == weights[f"{name}.gate_up_proj"][1, 2, 3].item()
    assert out[f"{name}.gate_proj.bias"].tolist() == [[0, 2], [4, 6]]


def test_packed_experts_are_left_to_sanitize() -> None:
    weights = {"model.layers.0.mlp.experts.gate_up_proj_blocks": mx.zeros((2, 4, 1, 16), mx.uint8)}
    assert prepare_weights(weights, {"model_type": "gpt_oss"}).keys() == weights.keys()


def test_experts_are_stacked_by_number() -> None:
    name = "model.language_model.layers.0.mlp"
    weights = {f"{name}.experts.{n}.up_proj.weight": mx.full((1, 2), n) for n in (10, 2, 0)}
    out = prepare_weights(weights, {"model_type": "qwen3_5_moe"})
    assert out[f"{name}.switch_mlp.up_proj.weight"][:, 0, 0].tolist() == [0, 2, 10]


@pytest.mark.parametrize("published", [True, False])
def test_merged_experts_take_the_published_orientation(published: bool) -> None:
    sizes = {"hidden_size": 4, "moe_intermediate_size": 2}
    shapes = {"experts.gate_up_proj": (3, 4, 4), "experts.down_proj": (3, 2, 4) if published else (3, 4, 2)}
    weights = {f"model.layers.0.mlp.{name}": numbered(*shape) for name, shape in shapes.items()}
    out = prepare_weights(weights, {"model_type": "qwen3_vl_moe", "text_config": sizes})
    assert out["model.layers.0.mlp.experts.down_proj"].shape == (3, 2, 4)
    same = mx.array_equal(
        out["model.layers.0.mlp.experts.gate_up_proj"], weights["model.layers.0.mlp.experts.gate_up_proj"]
    )
    assert bool(same) is published


def test_a_tied_head_is_written_where_mlx_lm_wants_one() -> None:
    embeddings = {"gpt_neox.embed_in.weight": numbered(3, 2)}
    assert "embed_out.weight" in prepare_weights(embeddings, {"model_type": "gpt_neox"})
    assert "lm_head.weight" not in prepare_weights(
        {"model.embed_tokens.weight": numbered(3, 2)}, {"model_type": "llama"}
    )


def test_multipliers_are_folded_once() -> None:
    torch_layout = {"a.conv1d.weight": mx.ones((2, 1, 4)), "a.k_proj.weight": mx.ones((2, 2))}
    config = {"model_type": "falcon_h1", "key_multiplier": 0.5}
    assert prepare_weights(torch_layout, config)["a.k_proj.weight"].max().item() == 0.5
    mlx_layout = {**torch_layout, "a.conv1d.weight": mx.ones((2, 4, 1))}
    assert prepare_weights(mlx_layout, config)["a.k_proj.weight"].max().item() == 1.0


def test_dropped_weights_are_named() -> None:
    weights = {"model.layers.1.mlp.moe_statics.e_score_correction_bias": mx.zeros(4), "model.norm.weight": mx.ones(4)}
    assert list(ignored_weights(weights, {"model_type": "ernie4_5_moe"})) == [next(iter(weights))]
    assert ignored_weights(weights, {"model_type": "llama"}) == {}
