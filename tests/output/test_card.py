from __future__ import annotations

import functools
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from mlxport.layouts.mlx_lm.layout import MLX_LM
from mlxport.output import card
from mlxport.output.card import read_source_card
from mlxport.types import Checkpoint, OutTensor, Plan, QuantSpec, Shard

model_card = functools.partial(card.model_card, usage=MLX_LM.usage, task=MLX_LM.task)
CARD = """---
license: other
license_name: llama3.2
license_link: https://example.org/license
language:
- en
- no
base_model: org/base-model
pipeline_tag: image-text-to-text
tags: [chat, mlx]
datasets:
- org/data
library_name: transformers
widget:
- text: x
---
# Original

Secret text of the original.
"""
Q4 = QuantSpec("affine", 4, 64)
PARITY = {
    "mode": "full",
    "tokens": 512,
    "passed": True,
    "comparisons": [
        {
            "name": "torch vs mlx",
            "max_abs": 1.25e-5,
            "mean_abs": 2e-6,
            "cosine_mean": 0.999999,
            "top1": 1.0,
            "kl_mean": 0,
        }
    ],
    "notes": ["real text"],
}


def checkpoint(root: Path, readme: str | bytes | None = None, **fields) -> Checkpoint:
    root.mkdir(parents=True, exist_ok=True)
    if readme is not None:
        (root / "README.md").write_bytes(readme if isinstance(readme, bytes) else readme.encode())
    return Checkpoint(root, {"model_type": "llama"}, {}, (), **fields)


def plan(**fields) -> Plan:
    tensor = OutTensor("a.weight", "BF16", (10, 64), "a.weight")
    return Plan((Shard("model.safetensors", (tensor,)),), "bfloat16", 640, **fields)


def parsed(text: str) -> dict:
    return ModelCard(text).data.to_dict()


def test_fields_of_the_source_are_kept_and_ours_are_added(tmp_path):
    text = model_card(checkpoint(tmp_path / "m", CARD), plan(), None, "1.2.3")
    assert parsed(text) == {
        "license": "other",
        "license_name": "llama3.2",
        "license_link": "https://example.org/license",
        "language": ["en", "no"],
        "base_model": "org/base-model",
        "pipeline_tag": "image-text-to-text",
        "tags": ["chat", "mlx", "mlxport"],
        "datasets": ["org/data"],
        "library_name": "mlx",
    }
    assert "Secret text" not in text
    assert "mlxport 1.2.3" in text and "not verified" in text and "640" in text


def test_a_hub_source_is_its_own_base_model(tmp_path):
    text = model_card(checkpoint(tmp_path, CARD, repo_id="org/model", revision="abc123"), plan(), None, "1")
    assert parsed(text)["base_model"] == "org/model"
    assert "https://huggingface.co/org/model" in text and "abc123" in text


def test_quantization_is_declared(tmp_path):
    quantized = plan(quantized={"a": Q4, "b": Q4, "c": QuantSpec("affine", 6, 64)}, kept={"d": "too small"})
    text = model_card(checkpoint(tmp_path, CARD), quantized, None, "1")
    assert parsed(text)["base_model_relation"] == "quantized"
    assert "affine 4 bits, groups of 64: 2 modules; affine 6 bits, groups of 64: 1 modules; 1 modules left" in text


def test_parity_figures_are_shown(tmp_path):
    text = model_card(checkpoint(tmp_path), plan(), PARITY, "1")
    assert "| torch vs mlx | 1.25e-05 | 2e-06 | 0.999999 | 100.0% | 0 |" in text
    assert "512 tokens" in text and "passed" in text and "not verified" not in text and "- real text" in text


def test_parity_layer_by_layer_is_shown(tmp_path):
    parity = {
        "mode": "layerwise",
        "tokens": 64,
        "passed": True,
        "comparisons": [],
        "layers": [
            {"module": "a", "relative": 1e-6},
            {"module": "b", "relative": 3e-6},
            {"module": "c", "relative": None},
        ],
        "weights": {"tensors": 12, "worst": "a|b\n# Fake", "relative": 0.0},
    }
    text = model_card(checkpoint(tmp_path), plan(), parity, "1")
    assert "hidden states after 2 modules: relative error at most 3e-06" in text
    assert "stored weights, 12 tensors: relative difference at most 0 (a/b # Fake)" in text
    assert "| logits compared" not in text and "\n# Fake" not in text


@pytest.mark.parametrize("base", ["/home/someone/model", "./model", "~/model", "../model", "C:\\models\\x", "a/b/c"])
def test_a_local_path_never_gets_in(tmp_path, base):
    card = f"---\nlicense: mit\nbase_model: '{base}'\n---\n"
    text = model_card(checkpoint(tmp_path / "folder", card), plan(), None, "1")
    assert "base_model" not in parsed(text)
    assert base not in text and str(tmp_path) not in text


HOSTILE = {
    "not yaml": "---\na: [1, 2\n---\n",
    "a list": "---\n- a\n- b\n---\n",
    "object tag": "---\nlicense: !!python/object/apply:os.system ['touch pwned']\n---\n",
    "deep": "---\nlicense: " + "[" * 5000 + "]" * 5000 + "\n---\n",
    "aliases": "---\na: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [" + ",".join([f"*{chr(97 + i)}"] * 9) + "]\n" for i in range(9))
    + "tags: *j\n---\n",
    "recursive": "---\ntags: &a [*a]\n---\n",
    "wrong kinds": "---\nlicense: {a: b}\ntags: 7\nlanguage: [[1], {x: y}]\nbase_model: [1]\n---\n",
    "bad date": "---\nlicense: 2024-99-99\n---\n",
    "odd keys": "---\n1: 2\nNone: x\n? [a, b]\n: c\n---\n",
    "its own arguments": "---\nignore_metadata_errors: true\nself: 1\n---\n",
    "bad index": "---\nmodel-index: 3\nlicense: mit\n---\n",
    "newline in a field": '---\nlicense: "mit\\n---\\n# Fake"\n---\n',
    "binary": b"---\n\xff\xfe\x00license: mit\n---\n",
    "no end": "---\nlicense: mit\n",
    "empty": "",
    "huge": "---\n" + "a: b\n" * 100_000 + "---\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_cards_are_noted_and_break_nothing(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = checkpoint(tmp_path / "m", HOSTILE[name])
    text = model_card(source, plan(), None, "1")
    data = parsed(text)
    assert data["library_name"] == "mlx" and data["tags"] == ["mlx", "mlxport"]
    assert not (tmp_path / "pwned").exists()
    assert "# Fake" not in text
    assert "license" not in data or data["license"] == "mit"
    if "license" not in data:
        assert "Note: the " in text or name == "odd keys"


def test_a_hostile_folder_name_stays_inside_code(tmp_path):
    text = model_card(checkpoint(tmp_path / "x`\n# Fake\n"), plan(), None, "1")
    assert "\n# Fake" not in text


def test_without_a_card(tmp_path):
    source = checkpoint(tmp_path)
    assert read_source_card(tmp_path).problem == "the source has no model card"
    text = model_card(source, plan(), None, "1")
    assert parsed(text) == {"library_name": "mlx", "pipeline_tag": "text-generation", "tags": ["mlx", "mlxport"]}
    assert "states none" in text


def test_norwegian_is_not_false(tmp_path):
    assert read_source_card(checkpoint(tmp_path, "---\nlanguage: no\n---\n").root).data["language"] == ["no"]


def test_windows_line_ends_and_byte_order_mark(tmp_path):
    source = checkpoint(tmp_path, "\ufeff" + CARD.replace("\n", "\r\n"))
    assert read_source_card(source.root).data["license_name"] == "llama3.2"
