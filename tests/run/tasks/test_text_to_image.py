"""A pipeline of diffusers, converted once, and the pictures that it makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mlxport as package
from refusals import Case, check_error


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Stable Diffusion 2.1 of a few numbers, as its ``fp16`` variant alone; its folder and what verification found."""
    pytest.importorskip("diffusers")
    from diffusion_models import save_sd21

    folder = tmp_path_factory.mktemp("diffusion")
    save_sd21(folder / "source", variant="fp16")
    return folder / "out", package.convert(folder / "source", folder / "out", quiet=True).parity


def test_parts_and_pictures_are_those_of_diffusers(made):
    _, report = made
    parts = {row.inputs.partition(",")[0] for row in report.comparisons}
    assert parts == {"text_encoder", "unet", "vae_encode", "vae_decode"}
    assert all(row.passed and row.relative < 1e-5 for row in report.comparisons)
    assert report.task.task == "text-to-image" and report.task.error < 1e-4 and not report.task.missing


def test_pictures_say_what_made_them(made, mlxport, tmp_path):
    options = ("--steps", "2", "--size", "24x32", "--n-images", "3", "--n-rows", "2", "--seed", "5", "--quiet")
    result = mlxport("run", made[0], "a cat on a mat", *options, "--output", tmp_path / "grid.png")
    assert result.code == 0, result
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (64, 48)
        assert grid.text["parameters"].startswith("a cat on a mat\nSteps: 2, Sampler: ddim")
        (said,) = json.loads(grid.text["mlxport"])
        pixels = np.asarray(grid)
    assert (said["seed"], said["height"], said["width"]) == (5, 24, 32)
    first = package.pipeline(made[0])("a cat on a mat", steps=2, size="24x32", seed=5, low_memory=True)
    assert np.array_equal(first["images"][0], pixels[:24, :32])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--size", "25x32"), ("--size 25x32: 25 is not a multiple of 4", "24 and 28")),
        (("--scheduler", "karras"), ("'karras' does not exist", "euler-ancestral")),
        (("--image", "absent.png"), ("absent.png",)),
    ],
)
def test_what_cannot_be_drawn(made, mlxport, tmp_path, monkeypatch, options, named):
    monkeypatch.chdir(tmp_path)
    check_error(mlxport("run", made[0], "a cat", *options, "--output", "cat.png"), Case(named[0], None, named, code=2))
    assert not list(tmp_path.iterdir())
