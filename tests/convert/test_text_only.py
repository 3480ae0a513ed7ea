"""A model of which the output is the text model alone: refused, or converted as asked and said everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from mlx_lm.utils import load_model
from safetensors.torch import load_file

import mlxport
from checkpoints import HEADS, HIDDEN, config, edit_json, save, weights, write_llama, write_side_files
from mlxport.convert.convert import surprise
from mlxport.errors import UnsupportedError
from mlxport.layouts.mlx_vlm.families import FAMILIES
from mlxport.layouts.table import chosen, why_not_the_runtimes

BIASED = {"q": HIDDEN, "k": HIDDEN // 2, "v": HIDDEN // 2}
NORMED = ("q", "k")
MROPE = {"rope_type": "default", "rope_theta": 50000.0, "mrope_section": [2, 3, 3]}


def tower(path: str, *names: str) -> dict[str, np.ndarray]:
    """Tensors of a part, one matrix and one vector each."""
    return {f"{path}.{name}.{leaf}": np.ones(shape) for name in names for leaf, shape in TENSORS.items()}


TENSORS = {"weight": (8, 4), "bias": (8,)}
SEEN = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
TOWERS = {"llava": "clip_vision_model", "mistral3": "pixtral", "pixtral": "pixtral", "llava_next": "clip_vision_model",
          "smolvlm": "smolvlm_vision", "qwen2_audio": "qwen2_audio_encoder"}  # fmt: skip

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
    # of which mlx-lm has code for the text model alone
    "llava_next": ("llama", "language_model.", tower("vision_tower.vision_model", "a", "b"), ("vision_config",),
                   ("vision_tower",)),
    "smolvlm": ("llama", "model.text_model.", tower("model.vision_model", "a") | tower("model.connector.proj", "a"),
                ("vision_config",), ("model.vision_model", "model.connector")),
    "qwen2_audio": ("qwen2", "language_model.", tower("audio_tower", "a") | tower("multi_modal_projector", "a"),
                    ("audio_config",), ("audio_tower", "multi_modal_projector")),
    # named as no tower is, but declared; transformers does not know the second
    "granite_speech": ("llama", "language_model.", tower("encoder", "a") | tower("projector", "b"),
                       ("encoder_config", "projector_config"), ("encoder", "projector")),
    "shy_chat": ("llama", "language_model.", tower("vision_model", "a") | tower("mlp1", "0"), ("vision_config",),
                 ("vision_model", "mlp1")),
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
    if prefix.startswith("model."):
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
    layout = "mlx-lm" if model_type in FAMILIES else "auto"  # auto takes those as a whole
    for options in ({}, {"dry_run": True}, {"quantize": 4}):
        with pytest.raises(UnsupportedError) as error:
            mlxport.convert(source, tmp_path / "out", verify="none", layout=layout, **options)
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


ALONE = ("llava_next", "smolvlm", "granite_speech", "shy_chat")  # llamas in what mlx-lm has no code for


@pytest.mark.parametrize("model_type", ALONE)
def test_a_text_model_out_of_another_is_what_it_would_be_by_itself(model_type, tmp_path):
    whole, plain = write(tmp_path / "whole", model_type), write_llama(tmp_path / "plain", shards=1)
    edit_json(whole / "config.json", eos_token_id=[1, 2], auto_map={"AutoModel": "modeling_shy.Shy"})
    for source, out, options in ((whole, "one", {"text_only": True}), (plain, "two", {})):
        mlxport.convert(source, tmp_path / out, verify="none", **options)
    one, two = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    first, second = (json.loads((tmp_path / out / "config.json").read_text()) for out in ("one", "two"))
    assert first == second | {"eos_token_id": [1, 2]}


@pytest.mark.parametrize(("model_type", "mode"), [("smolvlm", "full"), ("shy_chat", "layerwise")])
def test_such_a_text_model_is_verified_against_that_of_transformers(model_type, mode, tmp_path):
    source, out = write(tmp_path / "in", model_type), tmp_path / "out"
    report = mlxport.convert(source, out, verify=mode, text_only=True, quantize=8)
    assert report.parity is not None and report.parity.passed and report.parity.mode == mode
    assert report.parity.weights is not None and report.parity.weights.tensors == len(text_weights("llama"))
    again = mlxport.verify(out, source, mode=mode)
    assert again.passed and again.left_out == report.plan.left_out
    assert "the text model alone, without " + report.plan.left_out[0].name in again.summary()
    assert [part["name"] for part in again.to_json()["left_out"]] == [part.name for part in report.plan.left_out]


def sees(kind: str) -> Any:
    """A small model of transformers that sees."""
    text = {**config(), "num_hidden_layers": 1, "dtype": "float32"}
    sizes = SEEN | {"image_size": 28, "patch_size": 14}
    if kind == "smolvlm":
        made = transformers.SmolVLMConfig(text_config=text, vision_config=sizes)
        return transformers.SmolVLMForConditionalGeneration(made)
    sizes |= {"image_size": [28, 28], "patch_size": [14, 14]}
    # the whole ties the output layer, and the text part by itself does not
    made = transformers.InternVLConfig(text_config=text, vision_config=sizes, tie_word_embeddings=True)
    return transformers.InternVLForConditionalGeneration(made)


@pytest.mark.parametrize("kind", ["smolvlm", "internvl"])
def test_it_computes_what_the_whole_model_computes_of_a_text(kind, tmp_path):
    torch.manual_seed(0)
    model, ids = sees(kind).eval(), [[5, 9, 200, 17, 33, 8]]
    write_side_files(tmp_path / "in")
    model.save_pretrained(tmp_path / "in")
    mlxport.convert(tmp_path / "in", tmp_path / "out", verify="none", text_only=True)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor(ids)).logits.numpy()
    loaded, _ = load_model(tmp_path / "out")
    np.testing.assert_allclose(np.asarray(loaded(mx.array(ids))), expected, atol=2e-5)


def test_a_text_model_that_mlx_lm_has_no_code_for_is_refused(tmp_path):
    source = write(tmp_path / "in", "llava_next")
    for kind, said in (("mllama_text_model", "mllama_text_model"), ("nothing_known", "nothing_known")):
        whole = json.loads((source / "config.json").read_text())
        whole |= {"model_type": "mllama", "text_config": whole["text_config"] | {"model_type": kind}}
        (source / "config.json").write_text(json.dumps(whole))
        with pytest.raises(UnsupportedError, match=f"--text-only.*{said}") as error:
            mlxport.convert(source, tmp_path / "out", verify="none", text_only=True)
        assert "FILE.py:FACTORY" in error.value.hint


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
    source = write(tmp_path / "in", "pixtral")
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
    (said,) = surprise(layout, why_not_the_runtimes(bert), "auto", "fill-mask")
    assert all(
        word in said
        for word in (
            "'bert'",
            "'generated'",
            "mlxport run DST INPUT",
            "fill-mask",
            "mlxport.load(DST)",
            "generate and chat cannot",
        )
    )
    assert surprise(layout, "", "generated", None) == () == surprise(chosen("auto", config()), "", "auto", None)
