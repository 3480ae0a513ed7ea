"""Families of models of pictures and text: equal to transformers in unmodified mlx-vlm, whatever their dialect."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import mlxport
from mlxport.errors import UnsupportedError
from mlxport.fit.planning import plan_for
from mlxport.layouts.mlx_vlm import families
from mlxport.layouts.mlx_vlm.opening import check_config
from mlxport.run.tasks.picture_inputs import example_pictures
from mlxport.source import open_checkpoint
from vision_families import FAMILIES, config_of_2025, names_in_memory, names_of_2025, write_family

pytest.importorskip("mlx_vlm")
READ_ONE_WAY_BY_MLX_VLM = {"gemma3"}  # its tokens of a picture attend to those before them only
REFUSED_BY_MLX_VLM = {"llava"}  # its processor tells the image processor how to pad the text


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
    if converted.name in REFUSED_BY_MLX_VLM:
        with pytest.raises(ValueError, match="unexpected keyword argument 'padding'"):
            generate(model, processor, prompt, image=pictures, max_tokens=6, temperature=0.0)
        return
    theirs = generate(model, processor, prompt, image=pictures, max_tokens=6, temperature=0.0).text
    assert (theirs == ours) is not (converted.name in READ_ONE_WAY_BY_MLX_VLM)


def test_what_mlx_vlm_reads_otherwise_is_said(converted):
    said = any("mlx_vlm.generate reads them in one" in note for note in converted.report.parity.notes)
    assert said is (converted.name in READ_ONE_WAY_BY_MLX_VLM)


def test_four_bits_leave_what_reads_pictures_alone(converted, tmp_path):
    plan = mlxport.convert(converted.source, tmp_path / "made", quantize=4, q_group_size=32, dry_run=True).plan
    assert plan.quantized and all(path.startswith("language_model.") for path in plan.quantized)
    assert any("embed_tokens" in path for path in plan.quantized)


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
def test_a_plan_says_that_it_is_of_the_text_model_alone(converted):
    notes = plan_for(converted.source, device="M2 8GB").notes
    assert any("this is of the text model alone (--text-only)" in note and "for mlx-vlm" in note for note in notes)
