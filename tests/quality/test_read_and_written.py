"""The report of a model that reads with an encoder: figures are of what the original writes of the text."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
import transformers

import mlxport
import sequence_models
from mlxport.quality import compare


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """Folder of a checkpoint, and of its conversion with a report."""
    folder, sizes = tmp_path_factory.mktemp("t5"), sequence_models.T5 | {"d_model": 64, "d_kv": 16, "d_ff": 64}
    with pytest.MonkeyPatch.context() as patch:
        config = partial(transformers.T5Config, **sequence_models._COMMON, **sizes)
        patch.setitem(sequence_models.CONFIGS, "t5", config)
        sequence_models.save_sequence_model("t5", folder / "hf")
    mlxport.convert(folder / "hf", folder / "mlx", quantize=4, verify="none")
    mlxport.quality_report(folder / "mlx", tokens=200, device="M2 8GB")
    return folder


def test_the_report_says_what_was_read_and_what_was_written(t5):
    data = json.loads((t5 / "mlx/report.json").read_text())
    assert 0 < data["quality"]["kl_mean"] < 10 and data["quality"]["tokens"] == 99
    assert data["quality"]["perplexity_original"] < sequence_models.VOCABULARY  # that of what it wrote itself
    assert any("what the original writes of it is written" in note for note in data["notes"])
    blocks = [f"{side}.block.{number}" for side in ("encoder", "decoder") for number in (0, 1)]
    assert [layer["module"] for layer in data["layers"]] == blocks and all(it["error"] > 0 for it in data["layers"])
    assert {m["path"] for m in data["modules"] if not m["output_error"]} == {
        f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias" for side in ("encoder", "decoder")
    }
    assert len(data["samples"]) == 4 and data["speed"]["tps"] > 0 and data["predicted"]["memory_bytes"] > 0


def test_figures_are_those_of_torch(t5):
    rows = np.random.default_rng(0).integers(4, 300, (2, 30))
    found = compare(t5 / "hf", t5 / "mlx", ids=list(rows))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(t5 / "hf", dtype=torch.float64)
    with torch.no_grad():
        source, text = torch.from_numpy(rows[:, :15]), torch.from_numpy(rows[:, 15:])
        logs = model(input_ids=source, decoder_input_ids=text).logits.log_softmax(-1)
    loss = -logs[:, :-1].gather(-1, text[:, 1:, None]).mean()
    assert found.tokens == 28 and found.perplexity_original == pytest.approx(float(loss.exp()), rel=1e-4)


def test_a_plan_counts_what_is_read_and_what_is_written(t5):
    plan = mlxport.plan_for(t5 / "hf", device="M2 8GB", context=512)
    assert "512 tokens are read by the encoder, and as many are written" in plan.notes
    row = next(row for row in plan.rows if row.quantize == "4")
    assert row.cache_bytes == 2 * 2 * 2 * 512 * 64 * 2  # layers, texts, keys and values, bfloat16
