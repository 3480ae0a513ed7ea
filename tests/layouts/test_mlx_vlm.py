"""Families of models of pictures and text: equal to transformers in unmodified mlx-vlm, whatever their dialect."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mlxport
from mlxport.errors import UnsupportedError
from mlxport.fit.planning import plan_for
from mlxport.layouts.mlx_vlm import families
from mlxport.layouts.mlx_vlm.families import picture_of
from mlxport.layouts.mlx_vlm.opening import check_config
from mlxport.model.loaded import upcast
from mlxport.run.tasks.picture_inputs import example_pictures
from mlxport.source import open_checkpoint
from vision_families import FAMILIES, config_of_2025, names_in_memory, names_of_2025, write_family

pytest.importorskip("mlx_vlm")
OF_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
READ_ONE_WAY_BY_MLX_VLM = {"gemma3"}  # its tokens of a picture attend to those before them only


@dataclass(frozen=True)
class Converted:
    """A checkpoint of a family, its output, what was reported."""

    name: str
    source: Path
    folder: Path
    report: Any

    @property
    def config(self) -> dict[str, Any]:
        """The checkpoint's."""
        return json.loads((self.source / "config.json").read_text())


@pytest.fixture(scope="module", params=FAMILIES)
def converted(request, tmp_path_factory) -> Converted:
    root = tmp_path_factory.mktemp(request.param)
    source = write_family(root / "source", request.param)
    return Converted(request.param, source, root / "made", mlxport.convert(source, root / "made"))


def test_text_and_pictures_are_computed_as_transformers_does(converted):
    assert converted.report.layout == "mlx-vlm" and not converted.report.not_verified
    rows = converted.report.parity.comparisons
    assert [row.inputs for row in rows] == ["text", "two pictures and text"]
    assert all(row.relative < 1e-5 for row in rows) and len(converted.report.parity.answer) == 8


def test_a_run_writes_what_mlx_vlm_writes(converted):
    from mlx_vlm import generate, load
    from mlx_vlm.prompt_utils import apply_chat_template

    pictures = [picture.resize((90, 60)) for picture in example_pictures()[:2]]
    given = {"images": pictures, "text": "What?"}
    ours = mlxport.pipeline(converted.folder)(given, max_tokens=6)[0]["generated_text"]
    model, processor = load(str(converted.folder))
    prompt = apply_chat_template(processor, model.config, "What?", num_images=2)
    theirs = generate(model, processor, prompt, image=pictures, max_tokens=6, temperature=0.0).text
    assert (theirs == ours) is not (converted.name in READ_ONE_WAY_BY_MLX_VLM)


def test_what_mlx_vlm_reads_otherwise_is_said(converted):
    said = any("mlx_vlm.generate reads them in one" in note for note in converted.report.parity.notes)
    assert said is (converted.name in READ_ONE_WAY_BY_MLX_VLM)


def test_four_bits_leave_what_reads_pictures_alone(converted, tmp_path):
    plan = mlxport.convert(converted.source, tmp_path / "made", quantize=4, q_group_size=32, dry_run=True).plan
    assert plan.quantized and all(path.startswith("language_model.") for path in plan.quantized)
    assert any("embed_tokens" in path for path in plan.quantized)


@pytest.mark.parametrize("converted", ["gemma3", "mistral3"], indirect=True)
def test_a_mixed_recipe_is_of_the_layers_of_text(converted, tmp_path):
    plan = mlxport.convert(converted.source, tmp_path / "out", recipe="mixed_4_6", q_group_size=32, dry_run=True).plan
    bits = {path: spec.bits for path, spec in plan.quantized.items()}
    assert bits and all(path.startswith("language_model.") for path in bits)
    downs = [bits[path] for path in sorted(bits) if path.endswith("down_proj")]
    assert downs[-1] == 6 and {bits[path] for path in bits if path.endswith("up_proj")} == {4}


@pytest.mark.parametrize("converted", ["gemma3"], indirect=True)
def test_a_large_original_is_read_where_it_is_used(converted, monkeypatch):
    monkeypatch.setattr("mlxport.parity.picture_parity._SMALL", 0)
    found = mlxport.verify(converted.folder, against=converted.source)
    assert all(row.relative < 1e-5 for row in found.comparisons) and not found.answer


def test_a_config_of_2025_comes_out_as_one_of_today(converted):
    today = check_config(converted.config, "config.json")
    before = check_config(config_of_2025(converted.config), "config.json")
    assert before.pop("torch_dtype", "bfloat16") == today.pop("dtype")
    before.pop("dtype", None)
    assert before == today


@pytest.mark.parametrize("dialect", [names_of_2025, names_in_memory])
def test_names_of_each_year_mean_the_same(converted, dialect):
    family = families.family_of(converted.config)
    saved = list(open_checkpoint(converted.source).tensors)
    assert [family.name(dialect(name)) for name in saved] == [family.name(name) for name in saved]


def test_a_family_without_rules_is_refused_with_those_that_have_some(converted, tmp_path):
    shutil.copytree(converted.source, tmp_path / "source")
    config = {**converted.config, "model_type": "paligemma"}
    (tmp_path / "source/config.json").write_text(json.dumps(config))
    for layout in ("auto", "mlx-vlm"):
        with pytest.raises(UnsupportedError) as error:
            mlxport.convert(tmp_path / "source", tmp_path / "made", layout=layout, dry_run=True)
        said = f"{error.value.message} {error.value.hint}"
        assert "qwen3_vl" in said and "--text-only" in said


def test_a_checkpoint_of_2025_by_a_recipe_that_names_what_reads_pictures(tmp_path):
    recipe = tmp_path / "recipe.toml"
    eight = "{bits = 8, group_size = 32}"
    recipe.write_text(f'"*embed_tokens" = {eight}\n"vision_tower.*.fc1" = {eight}\n"language_model.*" = 4\n')
    source = write_family(tmp_path / "source", "gemma3")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config_of_2025(config)))
    weights = load_file(source / "model.safetensors")
    save_file({names_of_2025(name): weight for name, weight in weights.items()}, source / "model.safetensors")
    report = mlxport.convert(source, tmp_path / "made", recipe=recipe)
    bits = {path.rpartition(".")[2]: spec.bits for path, spec in report.plan.quantized.items()}
    assert (bits["fc1"], bits["embed_tokens"], bits["lm_head"]) == (8, 8, 8)
    assert all(row.relative < 1e-5 for row in report.parity.comparisons)


@pytest.mark.parametrize("converted", ["gemma3"], indirect=True)
def test_what_mlx_vlm_computes_of_gemma_3_is_the_original_with_pictures_read_one_way(converted):
    """So that nothing but the direction differs: no folder can say it, mlx-vlm drops the mask that it makes."""
    pipeline = mlxport.pipeline(converted.folder).model
    upcast(pipeline.model)
    picture = example_pictures()[0].resize((90, 60))
    inputs = pipeline.inputs(pipeline.prompt("What?", 1), [picture])
    original = transformers.Gemma3ForConditionalGeneration.from_pretrained(
        converted.source, dtype=torch.float32, attn_implementation="eager"
    )
    scale = original.model.language_model.embed_tokens.embed_scale
    original.model.language_model.embed_tokens.embed_scale = scale.to(torch.bfloat16).to(torch.float32)
    given = {name: torch.from_numpy(np.array(inputs[name])) for name in ("input_ids", "attention_mask")}
    pixels = torch.from_numpy(np.array(inputs["pixel_values"]))
    kinds = (given["input_ids"] == original.config.image_token_id).long()
    for one_way, types in ((True, torch.zeros_like(kinds)), (False, kinds)):
        with torch.no_grad():
            wanted = original(**given, pixel_values=pixels, token_type_ids=types).logits.numpy()
        found = np.array(pipeline.logits(inputs, one_way=one_way))
        assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("converted", ["llava"], indirect=True)
@pytest.mark.parametrize("saved", ["as published", "nested", "of 2023"])
def test_processors_of_llava_are_made_so_that_mlx_vlm_takes_transformers(converted, tmp_path, saved):
    """Whichever way its two files were saved."""
    source = shutil.copytree(converted.source, tmp_path / "source")
    outer, inner = (json.loads((source / name).read_text()) for name in OF_PROCESSORS)
    if saved == "nested":
        (source / OF_PROCESSORS[0]).write_text(json.dumps({**outer, "image_processor": inner}))
        (source / OF_PROCESSORS[1]).unlink()
    elif saved == "of 2023":
        (source / OF_PROCESSORS[0]).unlink()
        (source / OF_PROCESSORS[1]).write_text(json.dumps({**inner, "processor_class": "LlavaProcessor"}))
    mlxport.convert(source, tmp_path / "made", verify="none")
    for name in OF_PROCESSORS:
        made, wanted = (json.loads((folder / name).read_text()) for folder in (tmp_path / "made", converted.folder))
        usual = {"image_token": "<image>"} if name == OF_PROCESSORS[0] else {}
        assert {**usual, **made} == wanted


SIZES = ((60, 90), (200, 100), (100, 333), (57, 57), (700, 650))


@pytest.mark.parametrize("size", SIZES)
def test_tokens_of_a_picture_are_those_of_its_processor(converted, size):
    """Without a picture, from the files beside the weights: of the original, and of what was made of it."""
    model = mlxport.pipeline(converted.folder).model
    picture = example_pictures()[0].resize(size[::-1])
    alone, seen = (model.inputs(model.prompt("What?", len(shown)), shown)["input_ids"] for shown in ([], [picture]))
    places = int((seen == model._picture_tokens()[0]).sum())
    for folder in (converted.source, converted.folder):
        files = {path.name: path for path in folder.iterdir()}
        config = json.loads((folder / "config.json").read_text())
        found = picture_of(config, files, size)
        assert (found.height, found.width, found.tokens) == (*size, places)
        # Empty lines are two tokens of bytes, and one of a tokenizer of words.
        assert 0 <= seen.size - alone.size - found.all_tokens <= 2


def test_a_plan_is_of_the_whole_model(converted):
    plan = plan_for(converted.source, device="M2 8GB", context=512, image_size="90x60")
    seen = plan.pictures
    assert (seen.picture.width, seen.picture.height) == (90, 60) and seen.workspace_bytes > 0
    assert seen.runs == 'mlxport run DST picture.jpg --prompt "What is to be seen?"'
    written = {path: sum(file.stat().st_size for file in path.glob("*.safetensors")) for path in (converted.folder,)}
    row = next(row for row in plan.rows if row.quantize is None)
    assert 0 <= written[converted.folder] - row.disk_bytes < 20_000  # the file's header
    assert row.memory_bytes >= row.disk_bytes + seen.workspace_bytes
    assert not plan.left_out and plan.calibration is None
    made = mlxport.convert(converted.source, converted.folder.parent / "dry", quantize=4, dry_run=True).plan
    assert next(row for row in plan.rows if row.quantize == "4").disk_bytes == made.nbytes


@pytest.mark.parametrize("converted", ["gemma3"], indirect=True)
def test_plan_and_inspect_say_what_a_picture_takes(converted, mlxport):
    shown = mlxport("plan", converted.source, "--device", "M2 8GB", "--image-size", "90x60").out
    assert "a picture of 90 x 60 pixels: 16 patches, 4 tokens and 4 that mark it of the context" in shown
    assert "to convert: mlxport convert" in shown and "--text-only" not in shown
    for folder in (converted.source, converted.folder):
        assert "1024 x 768 pixels: 16 patches, 8 tokens" in mlxport("inspect", folder).out
    told = mlxport("plan", converted.source, "--device", "M2 8GB", "--image-size", "wide")
    assert told.code == 2 and "--image-size 'wide': expected width and height in pixels" in told.err
    notes = plan_for(converted.source, device="M2 8GB", context=8).notes
    assert any("one picture takes 8 tokens, and the context has 8" in note for note in notes)
