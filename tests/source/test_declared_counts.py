"""Layers and experts that a config declares are bounded by those that the weights hold, before any is made."""

from __future__ import annotations

import time

import pytest

from mlxport.errors import ConfigError
from mlxport.source.declared_counts import check_counts


def layers(count: int, stack: str = "model.layers") -> dict[str, tuple[int, ...]]:
    return {f"{stack}.{number}.mlp.weight": (8, 8) for number in range(count)}


ROUTED = {**layers(2), "model.layers.0.mlp.gate.weight": (2048, 8), "model.layers.0.mlp.experts.up": (2048, 16, 8)}
EACH = layers(600, "model.layers.0.mlp.experts")


@pytest.mark.parametrize(
    ("config", "shapes", "said"),
    [
        ({"num_hidden_layers": 2000}, layers(6), "num_hidden_layers is 2000, but the weights hold at most 6 numbered"),
        ({"num_hidden_layers": 200}, layers(80), "num_hidden_layers is 200"),
        ({"n_layer": 10**6}, {}, "n_layer is 1000000, but the weights hold at most 0"),
        ({"encoder_layers": 65}, {"model.layers.1999.mlp.weight": (8, 8)}, "at most 1 numbered layers"),
        ({"vision_config": {"depth": 500}}, layers(2), "vision_config.depth is 500"),
        ({"a": {"depths": [2, 2, 10**6, 2]}}, layers(2), "a.depths is 1000000"),
        ({"num_nextn_predict_layers": 1000}, layers(61), "num_nextn_predict_layers is 1000"),
        ({"text_config": {"num_local_experts": 60_000}}, ROUTED, "num_local_experts is 60000"),
        ({"n_routed_experts": 2047}, ROUTED, "no tensor of that size"),
        ({"moe_num_experts": [64, 2000]}, EACH, "moe_num_experts is 2000, but the weights hold at most 600 numbered"),
    ],
)
def test_more_than_there_are(config, shapes, said):
    with pytest.raises(ConfigError) as caught:
        check_counts(config, shapes, "config.json")
    assert f"config.json: {said}" in caught.value.message or said in caught.value.message


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        ({"num_hidden_layers": 24}, {"albert.encoder.group.0.weight": (8, 8)}),  # that share their weights
        ({"num_hidden_layers": 162}, layers(100)),  # of which some have lost theirs
        ({"num_experts": 512, "num_hidden_layers": 2}, layers(2)),  # in the config of a dense sibling
        ({"num_local_experts": 2048}, ROUTED),
        ({"num_experts": 600}, EACH),
        ({"vision_config": {"depth": 32}, "depth_multiplier": 1000, "n_group": 900}, layers(2)),
        ({"num_hidden_layers": None, "depths": "many", "num_layers": [], "encoder_layers": True}, {}),
    ],
)
def test_what_models_have(config, shapes):
    assert check_counts(config, shapes, "config.json") is None  # nothing is refused


def test_many_names_take_no_time():
    shapes = {f"model.layers.{n}.mlp.experts.{e}.up.weight": (8, 8) for n in range(61) for e in range(768)}
    started = time.process_time()
    check_counts({"num_hidden_layers": 61, "n_routed_experts": 768}, shapes, "config.json")
    assert time.process_time() - started < 2
