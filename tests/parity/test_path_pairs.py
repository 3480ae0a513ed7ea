from __future__ import annotations

import pytest

from mlxport.parity.path_pairs import align

CASES = [
    (
        ["model.layers.0.mlp"],
        ["model.layers.0.mlp", "model.layers.1.mlp"],
        {"model.layers.0.mlp": "model.layers.0.mlp"},
    ),
    (["model.h.3.attn"], ["transformer.h.3.attn"], {"model.h.3.attn": "transformer.h.3.attn"}),
    (
        ["language_model.model.layers.1.mlp", "language_model.model.norm"],
        ["model.language_model.layers.1.mlp", "model.language_model.layers.1.norm", "model.language_model.norm"],
        {
            "language_model.model.layers.1.mlp": "model.language_model.layers.1.mlp",
            "language_model.model.norm": "model.language_model.norm",
        },
    ),
    (["model.layers.0"], ["model.layers.0"], {"model.layers.0": "model.layers.0"}),
    (["model.layers.0.mlp"], ["model.layers.1.mlp"], {}),
    (["layers.0"], ["other.0"], {}),
]


@pytest.mark.parametrize(("ours", "theirs", "pairs"), CASES)
def test_by_the_longest_suffix_that_keeps_the_numbers(ours, theirs, pairs):
    assert align(ours, theirs) == pairs


def test_known_pairs_come_first():
    assert align(["a.as_linear"], ["a", "lm_head"], {"a.as_linear": "lm_head"}) == {"a.as_linear": "lm_head"}
