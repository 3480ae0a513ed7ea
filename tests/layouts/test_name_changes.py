"""Names that a wrapper changed for all of a checkpoint are read as the model's; whatever else differs is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
import torch
import transformers

from checkpoints import save, weights, write_side_files
from mlxport.errors import UnsupportedError, WeightsError
from mlxport.layouts.generated.hf_weights import absent, assign
from mlxport.layouts.mlx_lm.opening import open_model
from mlxport.layouts.name_changes import NameChange, likely_changes
from mlxport.parity.reference import load_reference
from mlxport.source import open_checkpoint
from mlxport.transform import invert, lazy_outputs
from mlxport.types import Checkpoint

Rename = Callable[[str], str]


def _bare(name: str) -> str:
    return name.removeprefix("model.")


def _compiled_layers(name: str) -> str:
    return name.replace("layers.0.", "layers.0._orig_mod.").replace("layers.1.", "layers.1._checkpoint_wrapped_module.")


RENAMED: dict[str, Rename] = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DataParallel": lambda name: f"module.{name}",
    "DataParallel of torch.compile": lambda name: f"module._orig_mod.{name}",
    "peft, merged": lambda name: f"base_model.model.{name}",
    "lightning": lambda name: f"model.{name}",
    "a script's own": lambda name: f"student.net.lm.{name}",
    "layers wrapped one by one": _compiled_layers,
    "a base model": _bare,
    "DataParallel of a base model": lambda name: f"module.{_bare(name)}",
    "another architecture's beginning": lambda name: f"transformer.{_bare(name)}",
}


def _llama(
    folder: Path, rename: Rename = str, drop: str = "", add: tuple[str, ...] = (), **config: object
) -> Checkpoint:
    write_side_files(folder, **config)
    arrays = {rename(name): array for name, array in weights().items() if not drop or drop not in name}
    arrays |= {name: arrays[next(iter(arrays))][:4] for name in add}
    save(folder / "model.safetensors", arrays)
    return open_checkpoint(folder)


@pytest.mark.parametrize("rename", RENAMED.values(), ids=RENAMED)
def test_one_change_of_all_names_is_read_as_the_models(rename: Rename, tmp_path: Path) -> None:
    checkpoint = _llama(tmp_path / "renamed", rename)
    opened = open_model(checkpoint)
    found = lazy_outputs(opened.plain.program)
    expected = lazy_outputs(open_model(_llama(tmp_path / "plain")).plain.program)
    assert found.keys() == expected.keys()
    assert all(mx.array_equal(found[name], expected[name]) for name in expected)
    (note,) = [note for note in opened.plain.notes if "names of the tensors" in note]
    assert note.count("names of the tensors") <= 2
    back = invert(opened.plain.program, found)
    assert sorted(back) == sorted(checkpoint.tensors)


@pytest.mark.parametrize("rename", RENAMED.values(), ids=RENAMED)
def test_the_reference_finds_every_weight_under_the_same_names(rename: Rename, tmp_path: Path) -> None:
    plain, renamed = (_llama(tmp_path / name, rule) for name, rule in (("plain", str), ("renamed", rename)))
    first, second = load_reference(plain).state_dict(), load_reference(renamed).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("beginning", ["_orig_mod.", "module.", "model.", "base_model.model."])
def test_a_model_that_only_transformers_has(beginning: str, tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=40
    )
    model = transformers.BertForMaskedLM(config)
    model.save_pretrained(tmp_path)
    state = {f"{beginning}{name}": item.detach().numpy() for name, item in model.named_parameters()}
    save(tmp_path / "model.safetensors", state, "F32")
    sources = assign(model, open_checkpoint(tmp_path))
    assert not absent(model, sources.found()) and not sources.left
    assert repr(beginning) in str(sources.change)


def test_names_that_are_right_are_not_touched(tmp_path: Path) -> None:
    opened = open_model(_llama(tmp_path))
    assert not any("names of the tensors" in note for note in opened.plain.notes)


def test_a_base_model_keeps_the_output_layer_beside_it() -> None:
    expected = ["model.embed.weight", "model.layers.0.a.weight", "lm_head.weight"]
    (change,) = likely_changes(["embed.weight", "layers.0.a.weight", "lm_head.weight"], expected)
    assert change == NameChange(add="model.", keep=frozenset({"lm_head.weight"}))
    assert sorted(map(change, ["embed.weight", "layers.0.a.weight", "lm_head.weight"])) == sorted(expected)


def test_numbers_of_layers_are_no_beginnings() -> None:
    names = [f"layers.0.experts.{number}.up.weight" for number in range(8)] + ["norm.weight", "embed.weight"]
    expected = ["model.layers.0.experts.up.weight", "model.norm.weight", "model.embed.weight"]
    assert [(change.strip, change.add) for change in likely_changes(names, expected)] == [("", "model.")]


REFUSED: dict[str, tuple[dict[str, object], type[Exception], tuple[str, ...], str]] = {
    "other names": (
        {"rename": lambda name: name.replace("self_attn", "attention")},
        WeightsError,
        ("expects model.layers.0.self_attn.k_proj.weight", "which holds model.layers.0.attention.k_proj.weight"),
        "config.json belongs to another model",
    ),
    "missing": ({"drop": "up_proj"}, WeightsError, ("mlp.up_proj.weight", "(2 of 21 tensors)"), "is missing"),
    "a prefix and something missing": (
        {"rename": lambda name: f"module.{name}", "drop": "up_proj"},
        WeightsError,
        ("model.layers.0.mlp.up_proj.weight", "(2 of 21 tensors)", "'module.'"),
        "is missing",
    ),
    "no output layer": (
        {"drop": "lm_head", "rename": _bare},
        WeightsError,
        ("lm_head.weight", "base or an embedding model"),
        '"tie_word_embeddings": true',
    ),
    "an adapter": (
        {
            "rename": lambda name: "base_model.model." + name.replace("q_proj.", "q_proj.base_layer."),
            "add": ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",),
        },
        UnsupportedError,
        ("adapter", "lora_A"),
        "merge_and_unload",
    ),
    "an adapter beside": (
        {"add": ("model.layers.0.self_attn.q_proj.lora_B.weight",)},
        UnsupportedError,
        ("adapter", "lora_B"),
        "merge_and_unload",
    ),
    "a classifier": (
        {"drop": "lm_head", "add": ("score.weight",), "architectures": ["LlamaForSequenceClassification"]},
        UnsupportedError,
        ("the head of LlamaForSequenceClassification", "score.weight"),
        "--layout generated",
    ),
    "a classifier that does not say so": (
        {"drop": "lm_head", "add": ("qa_outputs.weight",)},
        UnsupportedError,
        ("the head of a classifier", "qa_outputs.weight"),
        '"architectures": ["LlamaForQuestionAnswering"]',
    ),
    "a reward model": (
        {"add": ("v_head.summary.weight",)},
        UnsupportedError,
        ("reward or value model", "v_head.summary.weight"),
        "mlxport port FILE.py:FACTORY DST",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_is_there_is_shown_beside_what_is_expected(case: tuple, tmp_path: Path) -> None:
    changes, kind, named, hint = case
    with pytest.raises(kind) as caught:
        open_model(_llama(tmp_path, **changes))
    assert all(word in str(caught.value) for word in named), str(caught.value)
    assert hint in caught.value.hint


def test_the_hint_for_a_model_without_an_output_layer_works(tmp_path: Path) -> None:
    checkpoint = _llama(tmp_path, _bare, drop="lm_head")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert open_model(open_checkpoint(checkpoint.root)).plain.program.outputs
