"""Models of an encoder and a decoder, verified without their weights in memory."""

from __future__ import annotations

import gc
from functools import partial

import mlx.core as mx
import pytest

import mlxport
from mlxport.layouts.generated.loading import load_port, unquantized_port
from mlxport.model.memory import uncached
from mlxport.model.tensors import output_refs
from mlxport.parity import port_comparison
from mlxport.parity.port_comparison import compare_port
from mlxport.transform import lazy_arrays
from sequence_models import CONFIGS, save_sequence_model

LARGEST = 4 * 128 * 2048  # bytes of the largest matrix below, in float32
CACHE = 5 * 2 * 2 * 256 * 128 * 4  # of keys and values at most: mlx-lm's caches make room for 256 tokens
SIZES = {
    "t5": partial(CONFIGS["t5"], d_model=128, d_ff=2048),
    "bart": partial(CONFIGS["bart"], d_model=128, encoder_ffn_dim=2048, decoder_ffn_dim=2048),
}
WRONG = {
    "t5": ["encoder.block.1.layer.1.DenseReluDense.wo", "decoder.block.0.layer.0.SelfAttention.v", "EncDecAttention.k"],
    "bart": ["encoder.layers.1.fc2", "decoder.layers.0.self_attn.v_proj", "decoder.layers.1.encoder_attn.k_proj"],
}


class Made:
    """A converted model, and what it is compared with."""

    def __init__(self, name, bits, folder, patch):
        self.name, self.bits, self.folder = name, bits, folder / "mlx"
        save_sequence_model(name, folder / "hf")
        quant = {"quantize": bits, "q_group_size": 32} if bits else {}
        patch.setitem(vars(port_comparison), "compare_port", self._noted)
        self.report = mlxport.convert(folder / "hf", self.folder, verify="layerwise", **quant)
        self.refs = output_refs(self.folder)

    def _noted(self, conversion, model, **given):
        self.conversion = conversion
        assert given["stored"] is not None
        return compare_port(conversion, model, **given)

    def compare(self, stored):
        return compare_port(
            self.conversion, load_port(self.folder), dtype="float32", bits=self.bits,
            unquantized=partial(unquantized_port, self.folder), stored=stored,
        )  # fmt: skip

    def read(self):
        return lazy_arrays(self.refs)


@pytest.fixture(scope="module", params=[("t5", 4), ("bart", None)], ids=["t5-4-bits", "bart"])
def made(request, tmp_path_factory):
    name, bits = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, name, SIZES[name])
        return Made(name, bits, tmp_path_factory.mktemp(name), patch)


def peak(call):
    """Most bytes that MLX's arrays took at a time, and the result."""
    gc.collect()
    with uncached():
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        result = call()
        return mx.get_peak_memory() - before, result


def test_it_finds_what_the_whole_model_shows_and_holds_one_matrix_at_a_time(made):
    assert made.report.parity.passed and "generation: 4 tokens equal" in made.report.parity.summary()
    whole, expected = peak(lambda: made.compare(None))
    alive, found = peak(lambda: made.compare(made.read))
    assert found.passed and expected.passed
    assert [(row.compared, row.relative) for row in found.comparisons] == [
        (row.compared, pytest.approx(row.relative, abs=1e-6)) for row in expected.comparisons
    ]
    assert found.weights == expected.weights
    assert alive - CACHE < 4 * LARGEST < 8 * LARGEST < whole - CACHE


@pytest.mark.parametrize("part", range(3), ids=["encoder", "decoder", "cross attention"])
def test_a_wrong_weight_is_found(made, part):
    kind = "scales" if made.bits else "weight"
    name = next(name for name in made.refs if f"{WRONG[made.name][part]}.{kind}" in name)

    def damaged():
        arrays = made.read()
        return {**arrays, name: arrays[name] * 1.5}

    report = made.compare(damaged)
    assert not report.passed and name.rpartition(".")[0] in report.failure_message()
