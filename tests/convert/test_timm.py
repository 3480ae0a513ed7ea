"""Folders as timm publishes them: what they are, their pictures, their labels, the task's own comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mlxport
from mlxport.errors import ConfigError, UnsupportedError
from mlxport.run.tasks.picture_inputs import example_pictures
from mlxport.run.tasks.timm_pictures import timm_pictures
from timm_models import LABELS, timm_config, timm_folder, timm_is_here

needs_timm = pytest.mark.skipif(not timm_is_here(), reason="timm is not installed")


def unbuilt(folder: Path, **fields: object) -> Path:
    """A folder that looks like one of timm."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(timm_config("resnet18", **fields)))
    save_file({"fc.weight": torch.zeros(4, 8)}, folder / "model.safetensors")
    return folder


def test_inspect_says_what_it_is(tmp_path):
    found = mlxport.inspect(unbuilt(tmp_path / "model"))
    assert (found.architecture, found.model_type, found.task) == ("resnet18", "timm_wrapper", "image-classification")
    assert found.way_out.startswith("it converts to a port")


@pytest.mark.skipif(timm_is_here(), reason="timm is installed")
def test_without_timm_one_error_names_the_extra(tmp_path):
    with pytest.raises(
        UnsupportedError, match="config.json describes 'resnet18' of timm, and these are not installed: "
    ) as found:
        mlxport.convert(str(unbuilt(tmp_path / "model")), str(tmp_path / "out"))
    assert found.value.hint == "pip install 'mlxport[timm]'"


@needs_timm
def test_labels_and_scores_are_those_of_transformers_wrapper(tmp_path):
    # timm 1.0.31 and later write the number of classes twice, which transformers 5.23 does not take.
    twice = {"num_classes": 4, "in_chans": 3}
    folder = timm_folder(tmp_path / "model", "test_resnet", label_names=LABELS, model_args=twice)
    report = mlxport.convert(str(folder), str(tmp_path / "out"))
    found = report.parity.task
    assert (found.inputs, found.missing, found.failures) == (3, "", []) and found.error < 1e-5
    best = mlxport.pipeline(str(tmp_path / "out"))(example_pictures()[0], top_k=9)
    assert {entry["label"] for entry in best} == set(LABELS)


SMALL_SWIN = {"patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}


@needs_timm
@pytest.mark.parametrize(
    ("architecture", "sizes"), [("test_vit", {"depth": 1}), ("swin_tiny_patch4_window7_224", SMALL_SWIN)]
)
def test_transformers_of_other_sizes_from_torch_files_without_labels(tmp_path, architecture, sizes):
    folder = timm_folder(tmp_path / "model", architecture, binary=True, model_args={"img_size": 32, **sizes})
    report = mlxport.convert(str(folder), str(tmp_path / "out"))
    found = report.parity.task
    assert (found.inputs, found.missing, found.failures) == (3, "", []) and found.error < 1e-5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {str(index): f"LABEL_{index}" for index in range(4)}


@needs_timm
@pytest.mark.parametrize(
    "pretrained",
    [
        {},
        {"crop_mode": "squash", "interpolation": "bilinear", "crop_pct": 0.9},
        {"crop_mode": "border", "crop_pct": 1.0},
        {"crop_mode": "border", "crop_pct": 1.3, "interpolation": "lanczos"},
        {"input_size": [3, 20, 37], "crop_pct": 1.0, "mean": [0.5], "std": [0.5]},
        {"interpolation": None, "crop_pct": 1.2, "mean": None, "std": None, "crop_mode": None},
    ],
)
def test_pictures_are_those_of_transformers_processor(pretrained):
    from transformers import TimmWrapperImageProcessor

    settings = timm_config("resnet18", pretrained=pretrained)["pretrained_cfg"]
    theirs = TimmWrapperImageProcessor(settings)
    odd = [
        picture.resize(size) for picture, size in zip(example_pictures(), ((51, 33), (17, 90), (31, 31)), strict=True)
    ]
    for picture in [*example_pictures(), *odd]:
        wanted = theirs(picture)["pixel_values"].numpy()
        ours = timm_pictures(settings, "config.json")([picture])["pixel_values"]
        assert ours.dtype == np.float32 and np.abs(ours - wanted).max() < 1e-6


@pytest.mark.parametrize(
    ("pretrained", "said"),
    [
        ({"interpolation": "random"}, "interpolation is 'random'"),
        ({"input_size": [1, 28, 28]}, "input_size has 1 channels, and pictures have 3"),
        ({"crop_pct": -1}, "crop_pct is -1"),
        ({"mean": [0.5, 0.5]}, "mean is \\[0.5, 0.5\\], expected 3 numbers"),
        ({"crop_mode": "corner"}, "crop_mode is 'corner'"),
    ],
)
def test_settings_that_timm_does_not_have_are_refused(pretrained, said):
    with pytest.raises(ConfigError, match=f"config.json: {said}"):
        timm_pictures(timm_config("resnet18", pretrained=pretrained)["pretrained_cfg"], "config.json")
