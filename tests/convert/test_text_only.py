"""A model of which the output is the text model alone: refused, or converted as asked and said everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlxport
from checkpoints import HEADS, HIDDEN, config, save, weights, write_side_files
from mlxport.convert.convert import surprise
from mlxport.errors import UnsupportedError
from mlxport.layouts.table import chosen

BIASED = {"q": HIDDEN, "k": HIDDEN // 2, "v": HIDDEN // 2}
NORMED = ("q", "k")
MROPE = {"rope_type": "default", "rope_theta": 50000.0, "mrope_section": [2, 3, 3]}


def tower(path: str, *names: str) -> dict[str, np.ndarray]:
    """Tensors of a part, one matrix and one vector each."""
    return {f"{path}.{name}.{leaf}": np.ones(shape) for name in names for leaf, shape in TENSORS.items()}


TENSORS = {"weight": (8, 4), "bias": (8,)}
SEEN = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
TOWERS = {"llava": "clip_vision_model", "mistral3": "pixtral", "pixtral": "pixtral"}

# model type -> (inner model type, prefix of the text model, tensors of the other parts, their places in config.json,
# the modules that are left out)
Parts = tuple[str, str, dict[str, np.ndarray], tuple[str, ...], tuple[str, ...]]
MODELS: dict[str, Parts] = {
    "llava": ("llama", "language_model.", tower("vision_tower.vision_model", "a", "b")
              | tower("multi_modal_projector", "linear_1"), ("vision_config",),
              ("vision_tower", "multi_modal_projector")),
    "mistral3": ("mistral", "language_model.", tower("vision_tower", "a"), ("vision_config",), ("vision_tower",)),
    "pixtral": ("llama", "language_model.", tower("vision_tower", "a"), ("vision_config",), ("vision_tower",)),
    "qwen2_vl": ("qwen2_vl_text", "", tower("visual", "merger", "blocks.0"), ("vision_config",), ("visual",)),
    "qwen2_5_vl": ("qwen2_5_vl_text", "", tower("visual", "merger"), ("vision_config",), ("visual",)),
    "qwen3_vl": ("qwen3_vl_text", "model.language_model.", tower("model.visual", "merger"), ("vision_config",),
                 ("model.visual",)),
    # of no tower that mlx-lm knows: its loader has no place for one, and none for one that hears
    "llama": ("", "", tower("audio_tower", "a") | tower("speech_projector", "a"), ("audio_config",),
              ("audio_tower", "speech_projector")),
    "qwen2": ("", "", tower("model.vision_tower.tower", "a"), (), ("model.vision_tower",)),
}  # fmt: skip


def text_weights(kind: str) -> dict[str, np.ndarray]:
    arrays = weights()
    for layer in range(2):
        path = f"model.layers.{layer}.self_attn."
        if kind.startswith("qwen2"):
            arrays |= {f"{path}{name}_proj.bias": np.full(rows, 0.1, np.float32) for name, rows in BIASED.items()}
        if kind.startswith("qwen3"):
            arrays |= {f"{path}{name}_norm.weight": np.ones(HIDDEN // HEADS, np.float32) for name in NORMED}
    return arrays


def renamed(name: str, prefix: str) -> str:
    """A text model's tensor in the whole model, as the checkpoints of its kind have it."""
    if prefix == "model.language_model.":
        return name.replace("model.", prefix, 1) if name.startswith("model.") else name
    return prefix + name


def write(folder: Path, model_type: str, parts: bool = True) -> Path:
    """A checkpoint of this type, with its other parts or as an export without them."""
    inner, prefix, others, places, _ = MODELS[model_type]
    text = config()
    if "_vl" in model_type:
        text["rope_parameters"] = MROPE
    whole = {"model_type": model_type, "text_config": text | {"model_type": inner}} if inner else {**text}
    whole |= {"model_type": model_type, "tie_word_embeddings": False}
    kind = TOWERS.get(model_type, model_type)
    whole |= {place: SEEN | {"model_type": kind} for place in places}
    write_side_files(folder)
    (folder / "config.json").write_text(json.dumps(whole))
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).write_text("{}")
    (folder / "README.md").write_text("---\npipeline_tag: image-text-to-text\ntags: [image-text-to-text, x]\n---\n")
    arrays = {renamed(name, prefix): array for name, array in text_weights(inner or model_type).items()}
    save(folder / "model.safetensors", arrays | (others if parts else {}))
    return folder


@pytest.fixture(params=MODELS)
def model_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_part_that_would_be_left_out_is_refused_and_named(model_type, tmp_path):
    source = write(tmp_path / "in", model_type)
    *_, others, places, left = MODELS[model_type]
    for options in ({}, {"dry_run": True}, {"quantize": 4}):
        with pytest.raises(UnsupportedError) as error:
            mlxport.convert(source, tmp_path / "out", verify="none", **options)
        said = error.value.message
        assert all(name in said for name in (*left, *places, "text model alone")) and "--text-only" in error.value.hint
        counts = [sum(name.startswith(f"{path}.") for name in others) for path in left]
        assert all(f"{count} tensors, " in said for count in counts)
    assert not (tmp_path / "out").exists()


def test_the_text_model_alone_is_converted_as_asked_and_said(model_type, tmp_path):
    source, out = write(tmp_path / "in", model_type), tmp_path / "out"
    *_, others, places, left = MODELS[model_type]
    report = mlxport.convert(source, out, verify="none", text_only=True)
    record, written = (json.loads((out / name).read_text()) for name in ("mlxport.json", "config.json"))
    assert [part.name for part in report.plan.left_out] == [*left]
    assert record["options"]["text_only"] is True
    assert [part["name"] for part in record["output"]["left_out"]] == [*left]
    assert sum(part["nbytes"] for part in record["output"]["left_out"]) == sum(a.size * 2 for a in others.values())
    assert {part.declared for part in report.plan.left_out} >= {*places}
    card = (out / "README.md").read_text()
    assert "text model alone" in card and all(name in card for name in left)
    assert "pipeline_tag: text-generation" in card and "image-text-to-text" not in card
    assert not {*places} & {*written} and not list(out.glob("*processor_config.json"))
    assert len(report.plan.shards[0].tensors) == len(text_weights(MODELS[model_type][0] or model_type))


@pytest.mark.parametrize("model_type", ["llava", "qwen3_vl"])
def test_an_export_of_the_text_model_is_converted_without_a_word_from_the_user(model_type, tmp_path):
    report = mlxport.convert(write(tmp_path / "in", model_type, parts=False), tmp_path / "out", verify="none")
    assert not report.plan.left_out and any(
        "vision_config, of which the weights hold nothing" in n for n in report.notes
    )
    assert "vision_config" not in json.loads((tmp_path / "out/config.json").read_text())


@pytest.mark.parametrize("mode", ["full", "layerwise"])
def test_such_an_export_is_verified_though_the_original_class_has_a_tower(mode, tmp_path):
    source = write(tmp_path / "in", "mistral3", parts=False)
    report = mlxport.convert(source, tmp_path / "out", verify=mode, dtype="float32")
    assert report.parity is not None and report.parity.passed and report.parity.mode == mode


def test_nothing_to_leave_out_is_said_and_changes_nothing(source, tmp_path):
    plain, asked = (mlxport.convert(source, tmp_path / str(n), verify="none", text_only=bool(n)) for n in (0, 1))
    assert asked.notes == (*plain.notes, "--text-only changed nothing: every part of the checkpoint is in the output")
    first, second = ((tmp_path / str(n) / "model.safetensors").read_bytes() for n in (0, 1))
    assert first == second


def test_the_last_line_says_so(mlxport: Callable[..., Any], tmp_path):
    source = write(tmp_path / "in", "llava")
    for options, last in ((("--dry-run",), "dry run"), ((), "done")):
        result = mlxport("convert", source, tmp_path / "out", "--verify", "none", "--text-only", *options)
        lines = result.out.splitlines()
        (line,) = (number for number, text in enumerate(lines) if text.startswith(last))
        assert "the text model alone, without vision_tower" in " ".join(lines[line:])


def test_inspect_and_plan_say_the_same(mlxport: Callable[..., Any], tmp_path):
    source = write(tmp_path / "in", "mistral3")
    refused = mlxport("convert", source, tmp_path / "out", "--verify", "none").err
    looked, planned = mlxport("inspect", source).out, mlxport("plan", source, "--device", "M2 8GB").out
    part = "vision_tower (vision_config, 2 tensors, 80 B)"
    assert all(part in " ".join(text.split()) for text in (refused, looked, planned))
    assert "--text-only" in looked
    assert planned.rstrip().endswith("--text-only")
    assert json.loads(mlxport("inspect", source, "--json").out)["left_out"][0]["declared"] == "vision_config"


def test_a_text_model_has_nothing_to_say(mlxport: Callable[..., Any], source):
    assert "--text-only" not in mlxport("inspect", source).out + mlxport("plan", source, "--device", "M2 8GB").out


def test_auto_says_that_it_makes_what_does_not_generate(tmp_path):
    bert = {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 320}  # fmt: skip
    layout = chosen("auto", bert)
    (said,) = surprise(layout, bert, "auto")
    assert all(word in said for word in ("'bert'", "'generated'", "mlxport.load(DST)", "generate and chat cannot"))
    assert surprise(layout, bert, "generated") == () == surprise(chosen("auto", config()), config(), "auto")
