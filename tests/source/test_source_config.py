from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from little_llama import HIDDEN, LAYERS, VOCABULARY

from mlxport.errors import ConfigError
from mlxport.source import check_consistency, needs_remote_code, open_checkpoint
from mlxport.types import TensorRef


def refs(**shapes: tuple[int, ...]) -> dict[str, TensorRef]:
    named = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return {name: TensorRef(name, "BF16", shape, Path("model.safetensors"), 0) for name, shape in named.items()}


def llama(layers: int = LAYERS, prefix: str = "model", rows: int = VOCABULARY) -> dict[str, TensorRef]:
    stack = {f"{prefix}__layers__{layer}__input_layernorm__weight": (HIDDEN,) for layer in range(layers)}
    return refs(**{f"{prefix}__embed_tokens__weight": (rows, HIDDEN), f"{prefix}__norm__weight": (HIDDEN,)}, **stack)


CONFIG = {"model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "line 1, column 2"),
        (b"[]", "not a JSON object but a list"),
        (b"null", "not a JSON object"),
        (b'{"model_type": "llama", "x": "\xff"}', "not UTF-8"),
        (b'{"model_type": "llama", "x": NaN}', "NaN, as x"),
        (b'{"model_type": "llama", "rope_scaling": {"factors": [1, [NaN]]}}', "NaN, as factors"),
        (b'{"model_type": "llama", "x": %s}' % (b"9" * 5000), "is not accepted"),
        (b"[" * 100_000, "is not accepted"),
        (b"{}", "model_type is missing"),
        (b'{"model_type": 3}', "model_type is not a name but '3'"),
        (b'{"model_type": ""}', "model_type"),
        (b'{"model_type": "a\\nb"}', "model_type is not a name"),
        (b'{"model_type": "llama", "x": ["\\ud800"]}', "not valid Unicode"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS"),
    ],
)
def test_malformed_config(single: Path, text: bytes, message: str) -> None:
    (single / "config.json").write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        open_checkpoint(single)
    assert message in caught.value.message
    assert str(single / "config.json") in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("value", [0, -1, -(10**400)])
@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "n_layer"])
@pytest.mark.parametrize("part", ["", "text_config.", "thinker_config.text_config."])
def test_sizes_of_nothing(single: Path, key: str, value: int, part: str) -> None:
    config: dict[str, Any] = {key: value}
    for name in reversed(part.split(".")[:-1]):
        config = {name: config}
    (single / "config.json").write_text(json.dumps(CONFIG | config))
    with pytest.raises(ConfigError) as caught:
        open_checkpoint(single)
    assert f"{single / 'config.json'}: {part}{key} is {str(value)[:80]}, expected" in caught.value.message
    assert caught.value.hint


def test_sizes_of_other_parts_are_not_ours(single: Path) -> None:
    config = {"vision_config": {"num_hidden_layers": 0}, "num_attention_heads": None, "vocab_size": VOCABULARY}
    (single / "config.json").write_text(json.dumps(CONFIG | config))
    assert open_checkpoint(single).config["vision_config"] == {"num_hidden_layers": 0}


def test_what_other_readers_accept_is_accepted(single: Path) -> None:
    config = json.dumps(CONFIG)[:-1] + ', "vocab_size": 3, "vocab_size": 16, "time_step_limit": [0.0, Infinity]}'
    (single / "config.json").write_text(config)
    checkpoint = open_checkpoint(single)
    assert checkpoint.config["vocab_size"] == 16
    assert checkpoint.problems == ("config.json gives 'vocab_size' twice; the last value counts",) * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 16}, "hidden_size 16, but model.embed_tokens.weight is 16 x 8 in model.safetensors"),
        ({"num_hidden_layers": 3}, "3 layers, the weights hold 2: model.layers.2 is missing"),
    ],
)
def test_contradiction_of_config_and_weights(single: Path, change: dict[str, Any], message: str) -> None:
    (single / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ConfigError) as caught:
        open_checkpoint(single)
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"n_embd": 16}, refs(h__0__ln_1__weight=(8,), wte__weight=(9, 8)), "n_embd 16, but wte.weight is 9 x 8"),
        (
            {"n_layer": 2},
            refs(h__0__ln_1__weight=(8,), wte__weight=(9, 8)),
            "2 layers, the weights hold 1: h.1 is missing",
        ),
        ({"text_config": CONFIG | {"num_hidden_layers": 4}}, llama(), "4 layers"),
        (CONFIG | {"hidden_size": 4, "max_position_embeddings": HIDDEN}, llama(), "hidden_size 4"),
        ({"text_config": CONFIG | {"hidden_size": 4}, "hidden_size": 8}, llama(), "hidden_size 4"),
        (CONFIG, {n: r for n, r in llama(3).items() if ".layers.1." not in n}, "layers.1 is missing"),
    ],
)
def test_contradictions(config: dict[str, Any], tensors: dict[str, TensorRef], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_consistency(config, tensors)
    assert message in caught.value.message


NO_ALARM: list[tuple[str, dict[str, Any], dict[str, TensorRef]]] = [
    ("padded vocabulary", CONFIG, llama(rows=VOCABULARY + 48)),
    ("extra prediction layers", CONFIG | {"num_nextn_predict_layers": 1}, llama(3)),
    ("nothing known", {"model_type": "x"}, llama()),
    ("no tensors", CONFIG, {}),
    ("vision tower of another size", CONFIG, llama() | refs(vision_tower__layers__0__norm__weight=(99,))),
    ("text part", {"text_config": CONFIG, "vision_config": {"hidden_size": 3}}, llama(prefix="language_model__model")),
    ("text part without numbers", {"text_config": {"model_type": "llama"}, "hidden_size": 3}, llama()),
    ("factored embedding", CONFIG | {"hidden_size": 32}, llama() | refs(model__final_norm__weight=(32,))),
    ("embedding width of its own", CONFIG | {"hidden_size": 32, "embedding_size": HIDDEN}, llama()),
    ("no embedding", {"num_hidden_layers": 9}, refs(encoder__blocks__0__norm__weight=(8,))),
    ("two stacks", CONFIG | {"num_hidden_layers": 9}, llama() | refs(model__other__layers__0__norm__weight=(8,))),
    (
        "shared layers",
        CONFIG | {"num_hidden_layers": 12},
        refs(albert__encoder__albert_layer_groups__0__albert_layers__0__norm__weight=(8,)),
    ),
    ("encoder and decoder", {"is_encoder_decoder": True, "num_layers": 6}, refs(decoder__block__0__norm__weight=(8,))),
    (
        "packed embedding",
        CONFIG,
        llama() | {"model.embed_tokens.weight": TensorRef("e", "U32", (VOCABULARY, 1), Path("x"), 0)},
    ),
    ("counts of two kinds", CONFIG | {"num_layers": 1}, llama(1)),
    ("no numbers", CONFIG | {"hidden_size": "8", "num_hidden_layers": None, "vocab_size": True}, llama()),
]


@pytest.mark.parametrize(("config", "tensors"), [case[1:] for case in NO_ALARM], ids=[case[0] for case in NO_ALARM])
def test_no_false_alarm(config: dict[str, Any], tensors: dict[str, TensorRef]) -> None:
    assert check_consistency(config, tensors) == []


def test_oddities_are_told_not_refused() -> None:
    assert "vocab_size 20" in check_consistency(CONFIG | {"vocab_size": 20}, llama())[0]
    assert "2 layers, the weights hold 3" in check_consistency(CONFIG, llama(3))[0]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, False),
        ({"auto_map": {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.X"}}, True),
        ({"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}, False),
        ({"auto_map": {}}, False),
        ({"auto_map": "modeling_x.X"}, True),
    ],
)
def test_needs_remote_code(config: dict[str, Any], expected: bool) -> None:
    assert needs_remote_code(config) is expected
