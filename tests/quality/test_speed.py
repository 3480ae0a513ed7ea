from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import mlxport
from mlxport.fit import named_machine
from mlxport.quality.speed import measured, predicted
from mlxport.run.kv import KVQuant, recorded_kv
from mlxport.run.load import load_model


@pytest.mark.parametrize("quantize", [None, "4", "mxfp4"])
@pytest.mark.parametrize("name", ["tiny-llama", "qwen3_moe"])
def test_a_prediction_is_the_row_of_the_plan(sources, outputs, name, quantize):
    limit = 256
    load_model(outputs("tiny-llama"))  # what any command does that ran before in this process: no plan depends on it
    planned = mlxport.plan_for(sources(name), device="M2 8GB", context=limit, dtype="bfloat16")
    row = next(row for row in planned.rows if row.quantize == quantize)
    output = outputs(name, quantize=quantize, dtype="bfloat16")
    found = predicted(output, named_machine("M2 8GB"), limit, limit=limit)
    assert found.tokens_per_second == pytest.approx(row.tokens_per_second, rel=1e-3)
    # The plan takes the workspace of the model before it is quantized.
    assert found.memory_bytes == pytest.approx(row.memory_bytes, rel=0.05)
    assert found.fits and found.machine == "M2 8GB" and found.longest_context == limit


def test_a_run_is_measured_within_the_context(outputs):
    model, _ = load_model(outputs("llama", quantize=4))
    speed = measured(model, np.arange(2, 300), 256)
    assert (speed.prompt_tokens, speed.tokens) == (256 - 64 - 1, 64)
    assert speed.tps > 0 and speed.prompt_tps > 0 and speed.peak_bytes > 0
    assert speed.device == "CPU" or mx.default_device() == mx.gpu


def test_a_run_has_the_recorded_cache(outputs):
    folder = outputs("tiny-llama", quantize=4, kv_bits=8, kv_group_size=32, quantized_kv_start=0)
    model, ids = load_model(folder)[0], np.arange(2, 200)
    kv = recorded_kv(folder)
    assert kv == KVQuant(8, 32, 0) and measured(model, ids, 256, kv).tokens > 0
    with pytest.raises(ValueError, match="128"):  # no head is that large: the cache is really quantized
        measured(model, ids, 256, KVQuant(8, 128, 0))
