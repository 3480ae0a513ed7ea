"""Lists of layers as config.json's fields say them, and as they are where the fields say something else."""

from __future__ import annotations

import pytest

from mlxport.graph.write.layer_lists import LayerList, spelled_list

KINDS = ("near", "near", "far", "near", "near", "far")
LAYERS = LayerList("layers", 6, "n_layer", "layer_types", KINDS, 32)
LISTS = {"self.layers": 6, "cache": 6}


def calls(masks):
    return [(("x",), f"self.layers[{i}]({'y' if i == 0 else 'x'}, {mask}, cache[{i}])") for i, mask in enumerate(masks)]


def by_kind(near, far):
    return [near if kind == "near" else far for kind in KINDS]


def test_constructors_follow_from_fields():
    assert LAYERS.constructed(["Layer(args)"] * 6) == "[Layer(args) for _ in range(args.n_layer)]"
    numbers = "[Layer(args, 8 if kind == 'near' else 16, 4) for kind in args.layer_types]"
    assert LAYERS.constructed(by_kind("Layer(args, 8, 4)", "Layer(args, 16, 4)")) == numbers
    classes = "[Near(8) if kind == 'near' else Far(16) for kind in args.layer_types]"
    assert LAYERS.constructed(by_kind("Near(8)", "Far(16)")) == classes
    assert LAYERS.constructed(["Near(8)", *["Far(16)"] * 5]) is None
    assert LayerList("layers", 6).constructed(["Layer(args)"] * 6) is None


def test_calls_become_one_loop():
    masks = [(("near_mask",), "create_attention_mask(x, cache[0], window_size=32)"),
             (("mask",), "create_attention_mask(x, cache[2])")]  # fmt: skip
    made = LAYERS.looped([*masks, *calls(by_kind("near_mask", "mask")), ((), "self.norm(x)")], LISTS)
    assert [text for _, text in made] == [
        "create_attention_mask(x, cache[self.layer_types.index('near')], window_size=self.sliding_window)",
        "create_attention_mask(x, cache[self.layer_types.index('far')])",
        "x = y",
        "for layer, c, kind in zip(self.layers, cache, self.layer_types, strict=True):",
        "    x = layer(x, near_mask if kind == 'near' else mask, c)",
        "self.norm(x)",
    ]
    assert LAYERS.looped(calls(["near_mask", *["mask"] * 5]), LISTS) is None
    assert LAYERS.looped(calls(by_kind("near_mask", "mask"))[:-1], LISTS) is None


@pytest.mark.parametrize("values", ["abcabc", "aab", "aabaab", "abacad", "a"])
def test_lists_are_spelled_shorter(values):
    assert eval(spelled_list(list(values))) == list(values)
