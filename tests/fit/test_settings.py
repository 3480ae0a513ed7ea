"""Sizes to the byte: what a plan says is what ``convert`` writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from checkpoints import write_llama
from mlxport import convert
from mlxport.fit.quant_settings import Setting, measure, settings
from mlxport.layouts.mlx_lm.opening import open_model
from mlxport.quant import MIXED, MODES
from mlxport.source import open_checkpoint

SETTINGS = settings()


def written(folder: Path) -> int:
    return sum(array.nbytes for path in folder.glob("*.safetensors") for array in mx.load(str(path)).values())


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough layers for the mixed recipes to differ."""
    return write_llama(tmp_path_factory.mktemp("plan") / "deep", layers=9)


def test_every_setting_of_convert_is_there():
    assert [setting.quantize for setting in SETTINGS] == [
        None, "8", "6", "5", "4", "3", "2", *(mode for mode in MODES if mode != "affine"), *MIXED,
    ]  # fmt: skip
    assert [Setting(None).name("float16"), Setting("4").name("x"), Setting("mxfp4").name("x")] == [
        "float16", "4 bits", "mxfp4",
    ]  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name("none"))
def test_the_bytes_are_those_that_convert_writes(deep, tmp_path, setting):
    model = open_model(open_checkpoint(deep)).skeleton()
    measured = measure(model, setting, {})
    report = convert(deep, tmp_path / "out", quantize=setting.quantize, verify="none")
    assert measured.nbytes == report.plan.nbytes == written(tmp_path / "out")
    assert measured.read == measured.nbytes and not measured.problem


def test_the_model_is_left_as_it_was(deep):
    model = open_model(open_checkpoint(deep)).skeleton()
    before = measure(model, Setting(None), {})
    for setting in SETTINGS:
        measure(model, setting, {})
    assert measure(model, Setting(None), {}) == before


def test_what_is_read_follows_the_shares(deep):
    model = open_model(open_checkpoint(deep)).skeleton()
    for quantize in (None, "4"):
        whole = measure(model, Setting(quantize), {})
        parts = measure(model, Setting(quantize), {"model.embed_tokens.weight": 0.25, "lm_head.weight": 0.5})
        table = sum(size for name, size in whole.tensors.items() if name.startswith("model.embed_tokens."))
        head = sum(size for name, size in whole.tensors.items() if name.startswith("lm_head."))
        assert parts.read == whole.nbytes - table * 3 // 4 - head // 2


def test_a_setting_that_cannot_apply_says_why(deep, tmp_path):
    quantized = tmp_path / "quantized"
    convert(deep, quantized, quantize=4, verify="none")
    model = open_model(open_checkpoint(quantized)).skeleton()
    assert "already quantized" in measure(model, Setting("8"), {}).problem
    assert measure(model, Setting(None), {}).nbytes == written(quantized)
    shutil.rmtree(quantized)
