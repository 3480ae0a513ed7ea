"""One request from all spellings; contradictions are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlxport.errors import QuantizationError
from mlxport.quant import MIXED, QuantRequest, Rule, make_request, read_recipe
from mlxport.types import QuantSpec

AFFINE = QuantSpec("affine", 4, 64)

SPELLINGS: list[tuple[dict[str, Any], QuantRequest | None]] = [
    ({}, None),
    ({"quantize": False}, None),
    ({"quantize": None, "recipe": None}, None),
    ({"quantize": True}, QuantRequest(AFFINE)),
    ({"quantize": 4}, QuantRequest(AFFINE)),
    ({"quantize": "4"}, QuantRequest(AFFINE)),
    ({"quantize": 4, "bits": 4, "mode": "affine"}, QuantRequest(AFFINE)),
    ({"quantize": 3, "group_size": 32}, QuantRequest(QuantSpec("affine", 3, 32))),
    ({"quantize": True, "bits": 8, "group_size": 128}, QuantRequest(QuantSpec("affine", 8, 128))),
    ({"quantize": "mxfp4"}, QuantRequest(QuantSpec("mxfp4", 4, 32))),
    ({"quantize": "mxfp8", "bits": 8, "mode": "mxfp8"}, QuantRequest(QuantSpec("mxfp8", 8, 32))),
    ({"quantize": True, "mode": "nvfp4"}, QuantRequest(QuantSpec("nvfp4", 4, 16))),
    ({"quantize": 4, "mode": "nvfp4"}, QuantRequest(QuantSpec("nvfp4", 4, 16))),
    ({"quantize": "affine", "bits": 6}, QuantRequest(QuantSpec("affine", 6, 64))),
    ({"quantize": "mixed_4_6"}, QuantRequest(AFFINE, mixed="mixed_4_6")),
    ({"quantize": "mixed_2_6", "mode": "affine"}, QuantRequest(AFFINE, mixed="mixed_2_6")),
    ({"recipe": "mixed_3_6", "group_size": 32}, QuantRequest(QuantSpec("affine", 4, 32), mixed="mixed_3_6")),
    ({"recipe": "mixed_3_4", "quantize": True}, QuantRequest(AFFINE, mixed="mixed_3_4")),
    ({"recipe": "mixed_3_4", "quantize": "mixed_3_4"}, QuantRequest(AFFINE, mixed="mixed_3_4")),
    ({"quantize": 4, "quantizer": "rtn"}, QuantRequest(AFFINE)),
    ({"quantize": "mxfp4", "quantizer": "rtn"}, QuantRequest(QuantSpec("mxfp4", 4, 32))),
    ({"quantize": 4, "quantizer": "search"}, QuantRequest(AFFINE, quantizer="search")),
    ({"recipe": "mixed_3_4", "quantizer": "search"}, QuantRequest(AFFINE, mixed="mixed_3_4", quantizer="search")),
]


@pytest.mark.parametrize(("options", "expected"), SPELLINGS, ids=[str(options) for options, _ in SPELLINGS])
def test_spellings(options: dict[str, Any], expected: QuantRequest | None):
    assert make_request(options.pop("quantize", None), **options) == expected


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"bits": 4}, "--q-bits 4 has no effect without --quantize"),
    ({"group_size": 64}, "--q-group-size 64 has no effect"),
    ({"mode": "mxfp4"}, "--q-mode mxfp4 has no effect"),
    ({"quantize": False, "bits": 4}, "--q-bits 4 has no effect"),
    ({"quantize": 4, "bits": 8}, "--quantize 4 contradicts --q-bits 8"),
    ({"quantize": "mxfp4", "mode": "nvfp4"}, "--quantize mxfp4 contradicts --q-mode nvfp4"),
    ({"quantize": "mxfp4", "bits": 8}, "bits 8 does not exist for mxfp4"),
    ({"quantize": 8, "mode": "mxfp4"}, "bits 8 does not exist for mxfp4"),
    ({"quantize": 4, "group_size": 48}, "group size 48 does not exist"),
    ({"quantize": 7}, "bits 7 does not exist"),
    ({"quantize": 0}, "bits 0 does not exist"),
    ({"quantize": 1}, "bits 1 does not exist"),
    ({"quantize": -4}, "unknown quantization '-4'"),
    ({"quantize": "²"}, "unknown quantization"),
    ({"quantize": ""}, "unknown quantization ''"),
    ({"quantize": "int4"}, "unknown quantization 'int4'"),
    ({"quantize": "4.5"}, "unknown quantization '4.5'"),
    ({"quantize": "mixed_4_6", "bits": 4}, "mixed_4_6 already says what --bits 4 would say"),
    ({"quantize": "mixed_4_6", "mode": "mxfp4"}, "mixed_4_6 already says what --mode mxfp4"),
    ({"quantize": 4, "recipe": "mixed_4_6"}, "--recipe mixed_4_6 contradicts --quantize 4"),
    ({"quantize": 1, "recipe": "mixed_4_6"}, "--recipe mixed_4_6 contradicts --quantize 1"),
    ({"quantize": "mixed_2_6", "recipe": "mixed_4_6"}, "contradicts"),
    ({"quantize": 4, "recipe": "r.toml"}, "--recipe already says what --quantize 4 would say"),
    ({"recipe": "r.toml", "bits": 4, "group_size": 32}, "--bits 4 and --group-size 32"),
    ({"recipe": "absent.toml"}, "cannot read the recipe absent.toml"),
    ({"recipe": "/"}, "cannot read the recipe /"),
    ({"recipe": "mixed_9_9"}, "cannot read the recipe mixed_9_9"),
    ({"quantizer": "rtn"}, "--quantizer rtn has no effect without --quantize"),
    ({"quantizer": "search"}, "--quantizer search has no effect without --quantize"),
    ({"quantize": 4, "quantizer": "gptq"}, "unknown quantizer 'gptq'"),
    ({"quantize": 4, "quantizer": ""}, "unknown quantizer ''"),
    ({"quantize": "mxfp4", "quantizer": "search"}, "--quantizer search chooses scales and biases of affine modules"),
]


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS, ids=[str(options) for options, _ in CONTRADICTIONS])
def test_contradictions(options: dict[str, Any], message: str):
    with pytest.raises(QuantizationError) as caught:
        make_request(options.pop("quantize", None), **options)
    assert message in caught.value.message
    assert caught.value.hint


def test_mixed_recipes_are_those_of_mlx_lm():
    from mlx_lm.convert import QUANT_RECIPES

    assert list(MIXED) == QUANT_RECIPES


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_file(tmp_path: Path):
    path = recipe(
        tmp_path,
        """
        "*.v_proj" = 6
        "*.layers.0.*" = "keep"
        "lm_head" = { mode = "mxfp8" }
        "*.router" = false
        "*.gate" = { keep = true }
        "*.down_proj" = { bits = 3, group = 32 }
        "*.up_proj" = "nvfp4"
        "*" = { bits = 4, group_size = 128 }
        """,
    )
    request = make_request(recipe=path)
    assert request == make_request(True, recipe=str(path)) == read_recipe(path)
    assert request.spec == QuantSpec("affine", 4, 128)
    assert request.mixed is None
    assert request.rules == (
        Rule("*.v_proj", QuantSpec("affine", 6, 64)),
        Rule("*.layers.0.*", None),
        Rule("lm_head", QuantSpec("mxfp8", 8, 32)),
        Rule("*.router", None),
        Rule("*.gate", None),
        Rule("*.down_proj", QuantSpec("affine", 3, 32)),
        Rule("*.up_proj", QuantSpec("nvfp4", 4, 16)),
        Rule("*", QuantSpec("affine", 4, 128)),
    )


def test_a_recipe_is_searched_where_it_is_affine(tmp_path: Path):
    path = recipe(tmp_path, '"*.up_proj" = "nvfp4"\n"*" = 3')
    assert make_request(recipe=path, quantizer="search").quantizer == "search"  # type: ignore[union-attr]
    path = recipe(tmp_path, '"*.up_proj" = "nvfp4"\n"*" = "keep"')
    with pytest.raises(QuantizationError, match="here are none"):
        make_request(recipe=path, quantizer="search")


def test_the_first_rule_that_matches_wins():
    rules = (Rule("*.layers.0.*", None), Rule("*.v_proj", QuantSpec("affine", 6, 64)), Rule("*", AFFINE))
    request = QuantRequest(AFFINE, rules=rules)
    assert request.rule("model.layers.0.v_proj") is rules[0]
    assert request.rule("model.layers.1.v_proj") is rules[1]
    assert request.rule("lm_head") is rules[2]
    assert QuantRequest(AFFINE, rules=rules[:1]).rule("lm_head") is None


def test_without_a_rule_for_all_the_first_setting_is_the_default(tmp_path: Path):
    assert read_recipe(recipe(tmp_path, '"a" = "keep"\n"b*" = 8\n"c" = 3')).spec == QuantSpec("affine", 8, 64)


def test_unquoted_dots_and_tables_are_joined_again(tmp_path: Path):
    request = read_recipe(recipe(tmp_path, "[model.layers]\nbits = 3\n[lm_head]\nmode = 'mxfp4'\n"))
    assert [rule.pattern for rule in request.rules] == ["model.layers", "lm_head"]


WRONG = {
    "not TOML": ("*.v_proj = 6", "is not TOML"),
    "not text": (b"\xff\xfe", "cannot read the recipe"),
    "nothing": ("", "quantizes nothing"),
    "only keeps": ('"*" = "keep"', "quantizes nothing"),
    "bits": ('"*" = 7', "bits 7 does not exist"),
    "mode": ('"*" = "int4"', "unknown quantization mode 'int4'"),
    "mode is a number": ('"*" = { mode = 4 }', "one mode by name"),
    "mode is a list": ('"*" = { mode = ["mxfp4"] }', "one mode by name"),
    "field": ('"*" = { bits = 4, size = 3 }', "expected bits, a mode, a table"),
    "two groups": ('"*" = { group = 32, group_size = 64 }', "one group size"),
    "float": ('"*" = 4.0', "expected bits"),
    "true": ('"*" = true', "expected bits"),
    "list": ('"*" = [4]', "expected bits"),
    "text bits": ('"*" = { bits = "4" }', "bits must be a whole number"),
    "boolean bits": ('"*" = { bits = true }', "bits must be a whole number"),
    "keep and more": ('"*" = { keep = true, bits = 4 }', "keep = true stands alone"),
    "keep is false": ('"*" = { keep = false }', "keep = true stands alone"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_recipes(name: str, tmp_path: Path):
    text, message = WRONG[name]
    path = tmp_path / "recipe.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(QuantizationError, match=message) as caught:
        make_request(recipe=path)
    assert "recipe.toml" in caught.value.message
