"""Each way of being wrong that is known, put into a good output: it must fail, and be named."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from verify_models import edit_config, edit_weights

from mlxport.parity import verify

Q4 = {"bits": 4, "group_size": 32}
Q2 = {"bits": 2, "group_size": 64}


def theta(made):
    edit_config(made.folder, rope_theta=10000.0)


def flip_bytes(made):
    def change(weights):
        bytes_ = np.array(weights["model.layers.1.mlp.up_proj.weight"])
        bytes_.view(np.uint8)[3:5, ::2] ^= 0x5A
        weights["model.layers.1.mlp.up_proj.weight"] = mx.array(bytes_)

    edit_weights(made.folder, change)


def scale_rows(made):
    def change(weights):
        rows = np.array(weights["model.layers.1.mlp.up_proj.weight"])
        rows[3:5] *= -1
        weights["model.layers.1.mlp.up_proj.weight"] = mx.array(rows)

    edit_weights(made.folder, change)


def swap(made):
    def change(weights):
        for part in ("weight", "scales", "biases"):
            a, b = f"model.layers.0.mlp.gate_proj.{part}", f"model.layers.0.mlp.up_proj.{part}"
            if a in weights:
                weights[a], weights[b] = weights[b], weights[a]

    edit_weights(made.folder, change)


def transpose(made):
    name = "model.layers.1.self_attn.q_proj.weight"
    edit_weights(made.folder, lambda w: w.update({name: mx.contiguous(w[name].T)}))


def no_shift(made):
    name = "model.layers.1.input_layernorm.weight"
    edit_weights(made.folder, lambda w: w.update({name: w[name] - 1}))


def nibbles(made):
    def change(weights):
        name = "model.layers.0.self_attn.v_proj.weight"
        weights[name] = ((weights[name] & 0x0F0F0F0F) << 4) | ((weights[name] >> 4) & 0x0F0F0F0F)

    edit_weights(made.folder, change)


def experts(made):
    def change(weights):
        name = "model.layers.0.mlp.switch_mlp.up_proj.weight"
        weights[name] = mx.concatenate([weights[name][1:], weights[name][:1]])

    edit_weights(made.folder, change)


FAULTS = [
    ("llama", theta, None, "model.layers.0.self_attn", "rope_theta is 10000.0 in the output's config, 500000.0"),
    ("llama", theta, Q4, "model.layers.0.self_attn", "rope_theta is 10000.0 in the output's config, 500000.0"),
    ("llama", scale_rows, None, "model.layers.1.mlp.up_proj", "corrupted"),
    ("llama", flip_bytes, Q4, "model.layers.1.mlp.up_proj", "corrupted"),
    ("llama", swap, None, "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj.weight: tensors were swapped"),
    ("llama", swap, Q2, "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj.weight: tensors were swapped"),
    ("llama", transpose, None, "model.layers.1.self_attn.q_proj", "its transpose"),
    ("gemma", no_shift, None, "model.layers.1.input_layernorm", "1 + w is missing"),
    ("llama", nibbles, Q4, "model.layers.0.self_attn.v_proj", "another order within each pair"),
    ("qwen2_moe", experts, None, "model.layers.0.mlp.switch_mlp.up_proj", "tensors were swapped"),
]


def id_of(value):
    return getattr(value, "__name__", None)


@pytest.mark.parametrize("mode", ["full", "layerwise"])
@pytest.mark.parametrize(("name", "fault", "quantize", "module", "cause"), FAULTS, ids=id_of)
def test_is_found_and_named(converted, name, fault, quantize, module, cause, mode):
    made = converted(name, quantize=quantize)
    fault(made)
    report = verify(made.folder, made.checkpoint, invert=made.invert, mode=mode, tokens=48)
    assert not report.passed
    assert report.divergence is not None
    assert report.divergence.module == module
    assert cause in report.divergence.cause
    assert module in report.failure_message()
    assert report.divergence.to_json()["module"] == module


@pytest.mark.parametrize("how", [{}, {"quantize": Q4}], ids=["plain", "quantized"])
def test_a_tied_head_is_matched_to_the_head_of_the_original(converted, how):
    made = converted("llama_tied", **how)

    def change(weights):
        weights["model.norm.weight"] = weights["model.norm.weight"][::-1]

    edit_weights(made.folder, change)
    report = verify(made.folder, made.checkpoint, invert=made.invert, mode="full", tokens=48)
    assert report.divergence is not None and report.divergence.module == "model.norm"


def test_a_window_that_is_ignored_is_seen_where_it_ends(converted):
    made = converted("starcoder2")  # mlx-lm has no sliding window for it
    report = verify(made.folder, made.checkpoint, invert=made.invert, mode="full", tokens=48)
    assert report.divergence is not None and report.divergence.module == "model.layers.0.self_attn"
    assert "The first 9 positions agree, which is sliding_window of the original" in report.divergence.cause


def test_a_scale_that_is_applied_elsewhere_is_not_to_blame(converted):
    made = converted("gemma")  # torch scales inside the embedding, mlx-lm after it
    edit_config(made.folder, head_dim=16, rope_theta=100.0)
    report = verify(made.folder, made.checkpoint, invert=made.invert, mode="full", tokens=48)
    assert report.divergence is not None and report.divergence.module == "model.layers.0.self_attn"
