"""A quantized port is right, however coarse its weights are, or a packed weight is wrong: then it fails."""

from __future__ import annotations

import json
import shutil

import mlx.core as mx
import pytest
import torch
import transformers

import mlxport
from mlxport.parity.port_parity import DEQUANTIZED, ORIGINAL_WEIGHTS

FACTORY = """
import torch
from torch import nn


class Chooser(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 64, 3, padding=1)
        self.norm, self.inner, self.out = nn.LayerNorm(64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        scores = self.out(torch.relu(self.inner(self.norm(self.conv(x).transpose(1, 2)))))
        return scores, scores.argmax(-1)


def make():
    torch.manual_seed(0)
    return Chooser().eval(), (torch.randn(2, 8, 20),)
"""
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(scope="module")
def factory(tmp_path_factory):
    file = tmp_path_factory.mktemp("factory") / "chooser.py"
    file.write_text(FACTORY)
    return f"{file}:make"


def check(parity):
    """It passed, by figures that show it is right and not by luck."""
    assert parity.passed, parity.failure_message()
    exact = {row.compared.partition(" (")[0]: row for row in parity.comparisons if row.compared}
    assert set(exact) == {ORIGINAL_WEIGHTS, DEQUANTIZED}
    assert exact[DEQUANTIZED].relative < 1e-4
    noise = [row for row in parity.comparisons if not row.compared]
    assert max(row.relative for row in noise) > 1e-3
    assert parity.weights.tensors and 0 < parity.weights.relative < parity.weights.bound
    return noise


@pytest.mark.parametrize(
    ("quantize", "dtype", "noisy"),
    [("2", "float32", True), ("4", "float32", None), ("mxfp4", "bfloat16", None), ("2", "float16", True)],
)
def test_noise_is_no_failure(quantize, dtype, noisy, factory, tmp_path, mlxport):
    """Choices among close scores differ from the original's in any coarse copy."""
    args = ("port", factory, tmp_path / "out", "-q", quantize, "--dtype", dtype, "--q-group-size", "32")
    made = mlxport(*args)
    assert made.code == 0, made.err
    assert "dequantized weights" in made.out and "stored weights vs original" in made.out
    assert not noisy or "values differ" in made.out
    record = json.loads((tmp_path / "out" / "mlxport.json").read_text())
    assert record["verified"] and record["parity"]["weights"]["passed"]


def test_of_a_folder_of_transformers(tmp_path):
    """Its similarities lie near zero, so that noise alone may turn them round."""
    torch.manual_seed(0)
    text = {"vocab_size": 99, "max_position_embeddings": 32, "eos_token_id": 2, "projection_dim": 32, **SMALL}
    vision = {"image_size": 16, "patch_size": 8, "projection_dim": 32, **SMALL}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    transformers.CLIPModel(config).eval().save_pretrained(tmp_path / "clip")
    asked = {"layout": "generated", "quantize": 2, "q_group_size": 32, "dtype": "bfloat16"}
    report = mlxport.convert(tmp_path / "clip", tmp_path / "out", **asked)
    assert any(row.name == "logits_per_image" for row in check(report.parity))
    assert "dequantized weights" in (tmp_path / "out" / "README.md").read_text()


@pytest.fixture(scope="module")
def quantized(factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized") / "out"
    check(mlxport.port_folder(factory, folder, quantize=2, q_group_size=32).parity)
    return folder


def flipped(weights):
    scales = weights["inner.scales"]
    scales[5, 1] = -scales[5, 1]
    return "inner.weight: differs from the original by", "in row 5"


def exchanged(weights):
    for part in ("weight", "scales", "biases"):
        array = weights[f"out.{part}"]
        weights[f"out.{part}"] = mx.concatenate([array[1:2], array[:1], array[2:]])
    return ("out.weight: differs from the original by",)


def not_numbers(weights):
    weights["inner.biases"][0] = float("nan")
    return ("inner.weight: has NaN or inf",)


def shifted(weights):
    weights["norm.bias"] = weights["norm.bias"] + 0.5
    return (ORIGINAL_WEIGHTS, "Stored weights differ from the original's: norm.bias")


@pytest.mark.parametrize("change", [flipped, exchanged, not_numbers, shifted])
def test_a_wrong_weight_fails(change, quantized, factory, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(quantized, folder)
    weights = mx.load(str(folder / "model.safetensors"))
    said = change(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    report = mlxport.verify(folder, factory)
    assert not report.passed
    assert all(part in report.failure_message() for part in said), report.failure_message()


def test_verified_again(quantized, factory):
    check(mlxport.verify(quantized, factory))
